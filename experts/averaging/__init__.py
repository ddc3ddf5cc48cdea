"""Replicas made one: their mean, how vectors travel in fewer bytes, and a member's share of an exchange."""

from experts.averaging.compression import CODECS, Codec, PayloadDtype, codec_named
from experts.averaging.mean import add_delta, mean_of
from experts.averaging.share import Averaged, Share

__all__ = [
    "CODECS",
    "Averaged",
    "Codec",
    "PayloadDtype",
    "Share",
    "add_delta",
    "codec_named",
    "mean_of",
]
