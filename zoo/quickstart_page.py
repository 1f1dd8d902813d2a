"""The quickstart's report: what was made, learned, measured and recommended, for a first reader."""

from collections.abc import Callable, Sequence
from typing import Any

from zoo import report as pages

LEAD = (
    "A small shop was made up by the computer: items with a picture, a caption and a sound, and "
    "people who take one item after another. A recommender learned from what they took and from "
    "what the items look, read and sound like. Because the shop is made up, the best possible "
    "result is known, and every figure below can be held against it."
)
SHELF = 7  # history items shown a person


def page(
    result: dict[str, Any],
    history: Sequence[dict[str, float]],
    losses: Sequence[tuple[int, float]],
    content: Callable[[str], tuple[str, str]],
    world: str,
) -> str:
    """The document. history: evaluations, losses: (step, loss); content: item id to the paths
    of its picture and sound, '' where it has none; world: one sentence on the data."""
    return pages.page(
        "Quickstart of the multimodal recommender zoo",
        LEAD,
        _headline(result),
        _comparison(result),
        _training(result, history, losses),
        _strata(result),
        _knock_outs(result),
        _people(result["recommendations"], content),
        _made(result, world),
    )


def _headline(result: dict[str, Any]) -> str:
    model, best = result["model"]["recall@10"], result["optimum"]["recall@10"]
    name, floor = best_floor(result["floors"])
    return pages.figures(
        [
            (f"{model:.1%}", "of test people find their next item among ten recommendations"),
            (f"{model / best:.0%}", f"of the best possible, which is {best:.1%}"),
            (f"{model / floor:.2f} x", f"the best counting rule, {name}, at {floor:.1%}"),
            (f"{result['seconds']:.0f} s", f"in all, {result['training_seconds']:.0f} s training"),
        ]
    )


def best_floor(floors: dict[str, dict[str, float]], metric: str = "recall@10") -> tuple[str, float]:
    """Name and value of the floor that is best by `metric`."""
    name = max(floors, key=lambda floor: floors[floor][metric])
    return name, floors[name][metric]


def _comparison(result: dict[str, Any]) -> str:
    order = sorted(result["floors"].items(), key=lambda pair: pair[1]["recall@10"])
    rows = [(name, row["recall@10"], "floor") for name, row in order]
    rows += [("this model", result["model"]["recall@10"], "model")]
    rows += [("best possible", result["optimum"]["recall@10"], "optimum")]
    return pages.section(
        "Against counting, and against the best possible",
        pages.paragraph(
            "recall@10 on the test items, each the last that a person took: the share found among "
            "ten, all items ranked. Grey: rules that count instead of learning. Green: what "
            "someone would reach who knows the law of this world, but not the person's hidden "
            "type.",
            soft=True,
        ),
        pages.bars(rows),
    )


def _training(result: dict[str, Any], history: Sequence, losses: Sequence) -> str:
    floors = result["validation"]["floors"]
    name, floor = best_floor(floors)
    best = max(history, key=lambda row: row["ndcg@10"])
    levels = {
        f"best floor: {name}": (floor, "floor"),
        "best possible": (result["validation"]["optimum"]["recall@10"], "optimum"),
    }
    return pages.section(
        "Training",
        pages.paragraph(
            f"{result['steps']} steps over {result['epochs']} epochs at most. The parameters of "
            f"step {best['step']:.0f} were kept: best ndcg@10 on validation items, which are the "
            "last but one that a person took. Test items were looked at once, at the end.",
            soft=True,
        ),
        pages.curves(
            tuple(zip(*losses, strict=True)) or ((), ()),
            ([row["step"] for row in history], [row["recall@10"] for row in history]),
            "recall@10",
            levels,
            best["step"],
        ),
    )


def _strata(result: dict[str, Any]) -> str:
    rows = [
        [name, row["events"], row["recall@10"], row["ndcg@10"]]
        for name, row in result["strata"].items()
    ]
    return pages.section(
        "For whom it works",
        pages.paragraph(
            "The same test, by how often training had the wanted item, and by how much was known "
            "of the person. Items with count 0 are new: they were never taken in training, so "
            "only their picture, words and sound can lead to them.",
            soft=True,
        ),
        pages.table(["test items", "events", "recall@10", "ndcg@10"], rows),
    )


def _knock_outs(result: dict[str, Any]) -> str:
    full = result["model"]["recall@10"]
    rows = [("everything", full, "model")]
    rows += [(name, row["recall@10"], "floor") for name, row in result["knock_outs"].items()]
    return pages.section(
        "What it uses",
        pages.paragraph(
            "The trained model, measured again with one kind of knowledge taken away from all "
            "items. What costs recall is what the model leans on.",
            soft=True,
        ),
        pages.bars(rows),
    )


def _people(people: Sequence[dict[str, Any]], content: Callable) -> str:
    blocks = [
        pages.paragraph(
            "People drawn at random from the test. The reasons are counted in the training data "
            "or read off titles and item vectors; they can be checked, and they do not claim to "
            "be the model's inner workings. A green frame marks what the person truly took next.",
            soft=True,
        )
    ]
    for person in people:
        blocks += _person(person, content)
    return pages.section("A few people", *blocks)


def _person(person: dict[str, Any], content: Callable) -> list[str]:
    shown, coming = person["history"][-SHELF:], person["next"]
    left = len(person["history"]) - len(shown)
    more = f", the last {len(shown)} of {len(person['history'])}" if left else ""
    found = any(line["hit"] for line in person["recommended"])
    return [
        pages.heading(f"{person['user']} took{more}"),
        pages.shelf(pages.card(item["title"], *content(item["item"])) for item in shown),
        pages.heading("and is recommended"),
        pages.shelf(
            pages.card(
                line["title"],
                *content(line["item"]),
                [f"score {line['score']:.2f}", *line["reasons"]],
                "taken next" if line["hit"] else "",
                wide=True,
            )
            for line in person["recommended"]
        ),
        "" if found else pages.paragraph(f"Taken next, and missed: {coming['title']}.", soft=True),
    ]


def _made(result: dict[str, Any], world: str) -> str:
    rows = [
        ["data", world],
        ["split", f"leave-one-out, hash {result['split_hash']}"],
        ["parameters", f"sha256 {result['params_sha256']}"],
        ["seed, steps", f"{result['seed']}, {result['steps']}"],
        ["time", f"{result['seconds']:.1f} s, training {result['training_seconds']:.1f} s"],
        ["machine", result["made_on"]],
        ["bundle", result["bundle"]],
    ]
    use = f"import zoo\nbundle = zoo.from_pretrained({result['bundle']!r})\n"
    history = [item["item"] for item in result["recommendations"][0]["history"][-3:]]
    return pages.section(
        "How it was made",
        pages.code(result["command"]),
        pages.table(["", ""], rows),
        pages.heading("Use it"),
        pages.code(use + f"bundle.recommend({history}, k=5)"),
    )
