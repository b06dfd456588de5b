"""The one tree of errors that a person can cause and mend.

    FedshelfError             base; the command line prints it as one line and exits 1
    ├── ConfigError           region.toml, an option or a preset is wrong
    ├── DataError             a catalog, click log, qrels file or photo is wrong
    ├── BaseError             the frozen base is missing, damaged or another one
    ├── WireError             a message between headquarters and a region is malformed
    ├── FederationError       a run cannot go on (no quorum, no regions, interrupted state)
    ├── ReleaseError          a release is damaged, unsigned, half-written or another one
    ├── RetrievalError        an index is missing, damaged or of another encoder digest
    └── AuditError            an audit log was changed, is torn or cannot be written

Every message says what was found, what was expected and what to do, names the file or region,
and holds no query text and no product content. `assert` is for our own invariants only.
"""


class FedshelfError(Exception):
    """Something a person can mend; its text is one line, complete in itself."""


class ConfigError(FedshelfError):
    """A configuration file, an option or a preset is wrong."""


class DataError(FedshelfError):
    """A region's or a data set's file is wrong: which file, which row, why."""


class BaseError(FedshelfError):
    """The frozen base is missing, damaged, or not the one that was expected."""


class WireError(FedshelfError):
    """A message between headquarters and a region does not have the agreed form."""


class FederationError(FedshelfError):
    """A federated run cannot start or cannot go on."""


class ReleaseError(FedshelfError):
    """A release is damaged, half-written, wrongly signed, or made for another base."""


class RetrievalError(FedshelfError):
    """An index is missing, damaged, or made by another encoder than the one asking."""


class AuditError(FedshelfError):
    """An audit log was changed since it was written, is torn, or cannot be read or written."""
