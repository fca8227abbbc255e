"""The base of every configuration: frozen, strict, with errors of one line."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from visavis.errors import ConfigError


class Config(BaseModel):
    """Choices made once; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, **changes: object) -> Self:
        """A config from keywords.

        Raises:
            ConfigError: unknown key or impossible value, in one line.
        """
        try:
            return cls.model_validate(changes)
        except ValidationError as err:
            first = err.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{name} = {changes.get(name)!r}: {message}" if name else message) from err
