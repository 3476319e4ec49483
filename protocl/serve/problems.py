"""What a request is told when it cannot be answered: a status, what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.responses import JSONResponse

from protocl.errors import CapacityError, ConfigError, DataError


class Problem(Exception):  # noqa: N818  (it is an answer, no failure of ours)
    """A request that is not answered as it would like.

    Args:
        status: of HTTP.
        error: what is wrong, in a word for programs, such as ``"damaged_image"``.
        message: what was expected, what came, and what to do.
        headers: of the answer.
    """

    def __init__(
        self, status: int, error: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.headers = headers

    def response(self) -> JSONResponse:
        """The answer."""
        content = {"error": self.error, "message": str(self)}
        return JSONResponse(content, self.status, self.headers)


@contextmanager
def as_problems() -> Iterator[None]:
    """Complaints of the model as answers."""
    try:
        yield
    except KeyError as error:
        raise Problem(404, "unknown_class", f"{error.args[0]}: see GET /classes") from error
    except ConfigError as error:
        raise Problem(409, "conflict", str(error)) from error
    except CapacityError as error:
        raise Problem(507, "too_large", str(error)) from error
    except (DataError, ValueError, TypeError, OverflowError) as error:
        raise Problem(422, "bad_samples", str(error)) from error
    except OSError as error:
        raise Problem(
            507, "not_written", f"the change cannot be written: {error}; nothing was changed"
        ) from error
