"""The exceptions that users see, as sentences without a traceback."""


class RetrievalHeadsError(Exception):
    """Something the user can act on: what was wrong, where, and what is accepted."""


class ConfigError(RetrievalHeadsError):
    """A suite, config or option that cannot be used as it stands."""


class PromptError(RetrievalHeadsError):
    """A cell whose prompt cannot be built: too short, or the template refuses it."""


class ResultsError(RetrievalHeadsError):
    """A results, heads or baseline file that cannot be read."""


class EngineError(RetrievalHeadsError):
    """The engine did not start, died, or refused a request."""
