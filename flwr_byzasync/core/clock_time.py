"""Times of a clock, declared where they stand."""

from typing import Annotated

ClockTime = Annotated[float, "seconds of a monotonic clock"]
"""Seconds that only this process's clock can read: a checkpoint shifts every field of this type
to the clock of the process that resumes."""
