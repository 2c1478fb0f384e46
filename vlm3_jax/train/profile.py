"""A window of steps recorded for xprof (TensorBoard's profile page)."""

import pathlib

import jax


class Profile:
    """Records steps FIRST to LAST of "FIRST:LAST" (`train.profile`) into a folder; "" records nothing."""

    def __init__(self, window: str, folder: pathlib.Path):
        self.folder, self.active = folder, False
        self.first, self.last = map(int, window.split(":")) if window else (0, 0)

    def before(self, step: int) -> None:
        """Starts recording if `step` is the first of the window (or inside it, after a resume)."""
        if not self.active and self.first <= step <= self.last:
            jax.profiler.start_trace(str(self.folder))
            self.active = True

    def after(self, step: int, results) -> bool:
        """Ends the recording once the last step's `results` are there; True if it just ended."""
        if not self.active or step < self.last:
            return False
        jax.block_until_ready(results)
        self.close()
        return True

    def close(self) -> None:
        """Ends a recording that is still going on."""
        if self.active:
            jax.profiler.stop_trace()
            self.active = False
