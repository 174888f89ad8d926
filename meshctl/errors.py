"""What meshctl itself refuses."""

from __future__ import annotations

from mesh.errors import Category, Code, MeshError


class CtlCode(Code):
    """Why a command could not do what was asked."""

    ARGUMENT = "ctl_argument"
    FILE = "ctl_file"
    NOT_FOUND = "ctl_not_found"
    NOT_INSTALLED = "ctl_not_installed"
    SETTINGS = "ctl_settings"
    AGENT = "ctl_agent"
    AGENT_ANSWER = "ctl_agent_answer"
    NO_STATUS = "ctl_no_status"
    PLUGGED = "ctl_plugged"
    UNANSWERED = "ctl_unanswered"
    TOOL = "ctl_tool"
    CHECKSUM = "ctl_checksum"


class CtlError(MeshError):
    """Arguments, files or objects that do not fit."""


def bad_argument(message: str) -> CtlError:
    """An argument that cannot be used; exit code 2."""
    return CtlError(CtlCode.ARGUMENT, message)


def not_found(message: str) -> CtlError:
    """What was named does not exist; exit code 2."""
    return CtlError(CtlCode.NOT_FOUND, message, category=Category.NOT_FOUND)
