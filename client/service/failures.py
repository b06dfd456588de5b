"""Why a request was not answered, in words that both wires can say.

RequestError      a FedshelfError that knows its code
  invalid         400, INVALID_ARGUMENT        the request is wrong; sending it again is no use
  unauthenticated 401, UNAUTHENTICATED         no token, or another one
  not_found       404, NOT_FOUND               no such product or release here
  gone            410, FAILED_PRECONDITION     a cursor that is no longer known; search again
  too_large       413, INVALID_ARGUMENT        above a limit
  overloaded      429, RESOURCE_EXHAUSTED      too much at once; try again a little later
  unavailable     503, UNAVAILABLE             not ready yet, or about to stop
  deadline        504, DEADLINE_EXCEEDED       the caller's time was up before it was answered
"""

from typing import Final, Literal

from shared.errors import FedshelfError

Code = Literal[
    "invalid",
    "unauthenticated",
    "not_found",
    "gone",
    "too_large",
    "overloaded",
    "unavailable",
    "deadline",
]

HTTP_STATUS: Final[dict[Code, int]] = {
    "invalid": 400,
    "unauthenticated": 401,
    "not_found": 404,
    "gone": 410,
    "too_large": 413,
    "overloaded": 429,
    "unavailable": 503,
    "deadline": 504,
}


class RequestError(FedshelfError):
    """A request that is not answered; its text may go to whoever asked.

    Attributes:
        code: what both wires translate.
    """

    def __init__(self, code: Code, text: str) -> None:
        self.code = code
        super().__init__(text)
