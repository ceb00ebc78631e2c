"""Errors that a user can cause; the command line prints them as one line and exits with code 2."""


class PEagleError(ValueError):
    """A request that cannot be carried out as given; the message says what to change."""


class ConfigError(PEagleError):
    """A configuration that is incomplete, contradictory, or does not fit its counterpart."""


class CheckpointError(PEagleError):
    """A checkpoint that is missing, damaged, or made for something else."""


class BackendError(PEagleError):
    """A backend that there is not, or that cannot run a checkpoint's layers."""


class PromptError(PEagleError):
    """A prompt that is empty, unreadable, or too long."""


class EvaluationError(PEagleError):
    """A server that cannot be reached, refuses a request, or does not count what is asked for."""
