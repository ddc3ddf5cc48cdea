"""What a node answers for its experts: questions to them, and whole batches that it routes for thin clients.

A request is refused by its header alone if its tensors are not what the mesh's experts read, if none of them is here,
or if its answer would come too late: nothing of its body is then waited for.

Legend: B batch, D feature, C class, R rows over all experts of a call.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final

import numpy as np

from experts.errors import MalformedDataset
from meshnode.compute import Compute
from meshnode.hosted import Answer
from meshnode.hosting import ExpertHost
from meshnode.inference import RoutedInference
from meshnode.inference.wire import infer_reply
from meshnode.telemetry.instruments import Instruments
from protocol.errors import Draining, FrameTooLarge, MalformedTensor, ModuleMeshError, NotReady, UnknownExpert
from protocol.framing import Announced, Frame
from protocol.identifiers import PeerId
from protocol.limits import MAX_FRAME_BYTES, MAX_IMAGES_PER_CALL
from protocol.messages import ErrorReply, ExpertAnswer, Forward, ForwardReply, Infer, error_reply
from protocol.tensors import require_header, require_tensor

__all__ = ["Serving"]

WAY_SHARE: Final = 0.1
"""Share of a thin client's patience that is left for the way of images and answer."""


class Serving:
    """Answers for the experts of this node.

    Args:
        feature_dim: D, what the mesh's experts read.
        host: The experts.
        inference: Routes what thin clients send; None for a node that does not.
        compute: Where both are computed; a request finds room there or is refused.
        instruments: Count the requests and take their time.
    """

    def __init__(
        self,
        feature_dim: int,
        host: ExpertHost,
        inference: RoutedInference | None,
        compute: Compute,
        instruments: Instruments | None = None,
    ) -> None:
        self._feature_dim = feature_dim
        self._host = host
        self._inference = inference
        self._compute = compute
        self._instruments = instruments or Instruments()
        self._draining = False

    def drain(self) -> None:
        """Refuse what comes from now on; what has been let in is answered."""
        self._draining = True

    def admit(self, announced: Announced, wait_s: float) -> None:
        """Refuse a request by its header.

        Raises:
            Draining: The node is stopping.
            NotReady: It routes nothing for thin clients.
            UnknownExpert: None of the experts is here.
            MalformedTensor: Its tensors are not what they have to be.
            FrameTooLarge: What it asks for would be beyond the limit.
            Busy: It would wait longer than its caller does.
        """
        try:
            if self._draining:
                raise Draining
            match announced.message:
                case Forward() as forward:
                    self._check(forward, announced)
                case Infer():
                    self._check_images(announced)
            self._compute.check_room(wait_s)
        except ModuleMeshError as refusal:
            self._instruments.inference_requests.labels("server", refusal.code).inc()
            raise

    def _require_inference(self) -> RoutedInference:
        if self._inference is None:
            raise NotReady("this node routes nothing for thin clients")
        return self._inference

    def _check(self, forward: Forward, announced: Announced) -> None:
        hosted = [self._host.find(uid) for uid in forward.experts]
        if not any(hosted):
            raise UnknownExpert(forward.experts[0])
        features = require_header(announced.tensors, "features", dtype="float32", num_dims=(2,))
        if features.shape[1] != self._feature_dim:
            raise MalformedTensor("features", f"experts here read {self._feature_dim}, got {features.shape[1]}")
        num_rows = forward.num_rows or (features.shape[0],) * len(forward.experts)
        if forward.num_rows:
            rows = require_header(announced.tensors, "rows", dtype="int32", num_dims=(1,))
            if rows.shape[0] != sum(num_rows):
                raise MalformedTensor("rows", f"num_rows are {sum(num_rows)}, got {rows.shape[0]}")
        _require_no_other(announced, {"features", "rows"} if forward.num_rows else {"features"})
        # A row may be asked of every expert, so what comes of a request can be larger than the request.
        read_bytes = 4 * self._feature_dim * sum(num_rows)
        answer_bytes = sum(
            4 * number * len(expert.classes) for expert, number in zip(hosted, num_rows, strict=True) if expert
        )
        if max(read_bytes, answer_bytes) > MAX_FRAME_BYTES:
            raise FrameTooLarge(max(read_bytes, answer_bytes), MAX_FRAME_BYTES)

    def _check_images(self, announced: Announced) -> None:
        self._require_inference()
        images = require_header(announced.tensors, "images", dtype="uint8", num_dims=(3, 4))
        _require_no_other(announced, {"images"})
        if images.shape[0] > MAX_IMAGES_PER_CALL:
            raise MalformedTensor("images", f"{images.shape[0]} images, at most {MAX_IMAGES_PER_CALL} at a time")

    async def forward(self, message: Forward, request: Frame) -> Frame:
        """Ask experts, all at once; one that fails has its error in its place.

        Raises:
            MalformedTensor: The features or rows are not what they have to be.
            UnknownExpert, Busy: As the only expert that was asked answered.
        """
        with self._instruments.inference("server"):
            shape = (None, self._feature_dim)
            features_BD = require_tensor(request.tensors, "features", dtype="float32", shape=shape, finite=True)
            parts = _parts(message, request, features_BD)
            if len(message.experts) == 1:
                return _reply([await self._host.answer(message.experts[0], parts[0])])
            asked = (self._host.answer(uid, part) for uid, part in zip(message.experts, parts, strict=True))
            return _reply(await asyncio.gather(*map(_or_failure, asked)))

    async def infer(self, message: Infer, request: Frame, *, me: PeerId, my_name: str) -> Frame:
        """Route a batch through the mesh for a client that has neither trunk nor router.

        Args:
            me: This node.
            my_name: Its name.

        Raises:
            MalformedTensor: The images are none.
            ModuleMeshError: As `RoutedInference.predict`.
        """
        try:
            prediction = await self._require_inference().predict(
                request.tensors["images"],
                top_k=message.top_k,
                task=message.task,
                timeout_s=(1 - WAY_SHARE) * message.wait_s,
            )
        except MalformedDataset as exc:
            raise MalformedTensor("images", str(exc)) from exc
        return infer_reply(prediction, me=me, my_name=my_name)


def _require_no_other(announced: Announced, wanted: set[str]) -> None:
    if surplus := {header.name for header in announced.tensors} - wanted:
        raise MalformedTensor(sorted(surplus)[0], "nobody here reads it")


async def _or_failure(asked: Awaitable[Answer]) -> Answer | ModuleMeshError:
    try:
        return await asked
    except ModuleMeshError as failure:
        return failure


def _parts(message: Forward, request: Frame, features_BD: np.ndarray) -> Sequence[np.ndarray]:
    """The features of each expert's rows."""
    if not message.num_rows:
        return [features_BD] * len(message.experts)
    rows_R = require_tensor(request.tensors, "rows", dtype="int32", shape=(sum(message.num_rows),))
    if len(rows_R) and (rows_R.min() < 0 or rows_R.max() >= len(features_BD)):
        raise MalformedTensor("rows", f"a row is none of the {len(features_BD)}")
    parts = np.split(rows_R, np.cumsum(message.num_rows)[:-1])
    if any((np.diff(rows) <= 0).any() for rows in parts):
        raise MalformedTensor("rows", "those of an expert must increase")
    return [features_BD[rows] for rows in parts]


def _reply(outcomes: Sequence[Answer | ModuleMeshError]) -> Frame:
    answers: list[ExpertAnswer | ErrorReply] = []
    tensors = {}
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, ModuleMeshError):
            answers.append(error_reply(outcome))
        else:
            answers.append(
                ExpertAnswer(generation=outcome.generation, weights=outcome.weights, classes=outcome.classes)
            )
            tensors[f"probabilities.{number}"] = outcome.probabilities
    return Frame(ForwardReply(answers=tuple(answers)), tensors)
