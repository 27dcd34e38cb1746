"""What ``bench`` measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """The times of one operation on one array."""

    operation: str
    dtype: str
    shape: tuple[int, ...]
    axis: int
    bytes: int
    seconds: dict[str, float]  # by library, of "new array" (cylsm without `out`), and of "memory"

    @property
    def gb_per_s(self) -> dict[str, float]:
        return {name: self.bytes / seconds / 1e9 for name, seconds in self.seconds.items()}

    @property
    def best_peer(self) -> str | None:
        peers = self.seconds.keys() - {"cylsm", "new array", "memory"}
        return min(peers, key=self.seconds.__getitem__, default=None)

    @property
    def x_peer(self) -> float | None:
        return self.seconds[self.best_peer] / self.seconds["cylsm"] if self.best_peer else None

    @property
    def of_limit(self) -> float:
        return self.seconds["memory"] / self.seconds["cylsm"]

    @property
    def array(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.dtype} {shape}" + (f" axis {self.axis}" if self.axis != -1 else "")
