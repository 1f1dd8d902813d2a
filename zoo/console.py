"""What the shell shows: a progress bar on standard error, one result on standard output."""

import json
from collections.abc import Sequence
from typing import Any

SHOWN = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")  # of the metrics, where a table is short


class Bar:
    """A progress bar on standard error; called as report(step, steps, metrics)."""

    def __init__(self, name: str, select: str):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), Remaining())
        told = TextColumn("{task.fields[told]}")
        self.progress = Progress(*columns, told, console=Console(stderr=True))
        self.select, self.loss, self.best = select, "", ""
        self.task = None

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()

    def __call__(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        if self.task is None:
            self.task = self.progress.add_task("", total=steps, told="")
        if "loss" in metrics:
            self.loss = f"loss {metrics['loss']:.4f}"
        if self.select in metrics:
            self.best = f"validation {self.select} {metrics[self.select]:.4f}"
        self.progress.update(self.task, completed=step, told=f"{self.loss}  {self.best}")


def rounded(metrics: dict[str, Any], digits: int = 6) -> dict[str, Any]:
    return {k: round(v, digits) if isinstance(v, float) else v for k, v in metrics.items()}


def tell(result: dict[str, Any], as_json: bool) -> int:
    """One JSON object, or the same as readable lines, on standard output."""
    if as_json:
        print(json.dumps(result))
        return 0
    from rich.console import Console
    from rich.pretty import Pretty

    Console().print(Pretty(result, expand_all=True))
    return 0


def show(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    """A table on standard output: the first column as words, numbers to the right."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(heads[0], no_wrap=True)
    for head in heads[1:]:
        table.add_column(head, justify="right", no_wrap=True, min_width=len(head))
    for row in rows:
        table.add_row(*(f"{x:.4f}" if isinstance(x, float) else str(x) for x in row))
    Console().print(table)
    return 0
