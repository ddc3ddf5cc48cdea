"""Whether the settings can be followed, and whether the daemon follows them."""

from collections.abc import Sequence

from meshnode.doctor.finding import Finding
from meshnode.doctor.subject import Subject

__all__ = ["check_config"]


def check_config(subject: Subject) -> Sequence[Finding]:
    """All problems of the settings as one finding, as they are found together."""
    path = subject.home.config_toml
    if subject.config_error is not None:
        hint = subject.config_error.hint or f"Correct it; settings are in {path} and in MESHNODE_ variables."
        return [Finding("config", "problem", subject.config_error.message, hint)]
    if subject.told("config").get("changed"):
        message = f"{path} was changed after the daemon had started"
        return [Finding("config", "note", message, "`meshnode stop`, then `meshnode run`.")]
    return [Finding("config", "ok", str(path) if path.exists() else "no config.toml: every setting has its default")]
