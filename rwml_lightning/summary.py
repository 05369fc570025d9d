"""Tables on the terminal: the summary at the end of a run, and the results of an evaluation."""

from __future__ import annotations

from dataclasses import replace

from rich.table import Table
from rich.text import Text

from rwml_lightning.evaluation import EpisodeResult, Result, render_by_kind, render_episodes, render_results
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.run import RunFolder
from rwml_lightning.terminal import Terminal, make_table
from rwml_lightning.trace import Evaluation, Filter, GroupQuery, TraceReader


def print_evaluation(module: PolicyModule) -> None:
    """Print the tables of the last evaluation: results of played games and of predictions."""
    if module.games.results:
        Terminal().print(render_episodes("Evaluation games", {row.name: row for row in module.games.results}))
    if module.held_out.results:
        Terminal().print(render_results("Held-out transitions", module.held_out.results))
        Terminal().print(render_results("Floors: predictors without a model", module.held_out.floors))


def print_summary(folder: RunFolder, num_samples: int = 3) -> None:
    """Print held-out results at the start, after the warm-up and at the end, and some of the last predictions.

    Args:
        folder: Folder of a finished run.
        num_samples: Number of predictions.
    """
    console = Terminal()
    with TraceReader(folder.trace) as reader:
        games = [evaluation for evaluation in reader.evaluations() if evaluation.name == "episodes"]
        evaluations = milestones(reader.evaluations())
        if not evaluations and not games:
            console.print(f"No held-out results in {folder.trace}.")
            return
        if games:
            rows = {"before": games[0], "end": games[-1]} if len(games) > 1 else {"end": games[0]}
            found = {
                name: EpisodeResult(**evaluation.result["results"][0]) for name, evaluation in rows.items()
            }
            console.print()
            console.print(render_episodes("Evaluation games", found))
        if evaluations:
            print_predictions(console, reader, evaluations, num_samples)
    console.print(f"Run folder: {folder.path}")
    console.print(f"Look at every {'episode' if games else 'prediction'}: rwml-tui {folder.path}")
    console.print(f"Model for transformers and vLLM: {folder.export}")


def print_predictions(
    console: Terminal, reader: TraceReader, evaluations: dict[str, Evaluation], num_samples: int
) -> None:
    """Print held-out results of the world model, and some of its last predictions."""
    last = list(evaluations.values())[-1]
    results = {name: _rows(evaluation, "results") for name, evaluation in evaluations.items()}
    rows = [replace(found[0], name=name) for name, found in results.items()]
    rows += [replace(floor, name=f"floor: {floor.name}") for floor in _rows(last, "floors")]
    console.print()
    console.print(render_results("Held-out predictions; floors need no model", rows))
    console.print(render_by_kind("Share under tau_d by kind of step", results))
    console.print(_samples(reader, last, num_samples))


def milestones(evaluations: list[Evaluation]) -> dict[str, Evaluation]:
    """Return the first and the last held-out evaluation of the run and the one after the warm-up, by name."""
    evaluations = [e for e in evaluations if e.name == "held_out"]
    main = [e for e in evaluations if not e.stage.endswith("_sft")]
    warm_up = [e for e in evaluations if e.stage.endswith("_sft")]
    if not main:
        main, warm_up = warm_up, []
    if not main:
        return {}
    named = {"before": warm_up[0]} if warm_up else {}
    named["after warm-up" if warm_up else "before"] = main[0]
    if len(main) > 1:
        named["end"] = main[-1]
    return named


def _rows(evaluation: Evaluation, key: str) -> list[Result]:
    return [Result(**row) for row in evaluation.result[key]]


def _samples(reader: TraceReader, evaluation: Evaluation, count: int) -> Table:
    columns = ("action", "predicted next state", "real next state", "similarity")
    table = make_table("Sample predictions at the end", columns, num_texts=3, show_lines=True)
    query = GroupQuery(
        stage=evaluation.stage,
        source=evaluation.name,
        filters=(Filter("step", "=", evaluation.step),),
        descending=False,
    )
    kinds: set[str] = set()
    for summary in reader.groups(query, limit=200):
        if summary.kind in kinds or len(kinds) >= count:
            continue
        kinds.add(summary.kind)
        group = reader.group(summary.id)
        first = reader.predictions(summary.id)[0]
        assert group is not None
        predicted = first.next_state or Text("(no well-formed answer)", "dim")
        similarity = "" if first.similarity is None else f"{first.similarity:.2f}"
        table.add_row(summary.action, predicted, group.transition.next_state, similarity)
    return table
