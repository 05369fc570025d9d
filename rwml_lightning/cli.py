"""The command line: Lightning's CLI with a run folder, a warm-up and further commands."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ArgsType, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from rwml_lightning import parallel, pipeline
from rwml_lightning.commands.audit import audit
from rwml_lightning.commands.collect import collect
from rwml_lightning.commands.configured import Configured
from rwml_lightning.commands.evaluate import evaluate, repeat_option
from rwml_lightning.commands.export import export
from rwml_lightning.commands.weight_change import weight_change
from rwml_lightning.commands.what_if import what_if
from rwml_lightning.config_errors import ReadableParser, reason
from rwml_lightning.credentials import check_config
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.generation import ServersGoneError
from rwml_lightning.interrupts import Interrupted, handled, keep_handlers
from rwml_lightning.memory import Plan
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.preflight import check_run, check_stage
from rwml_lightning.printable import guard_terminal, printable
from rwml_lightning.rewards import ServerError
from rwml_lightning.rewards.controls import ControlName
from rwml_lightning.run import Run, RunFolder, open_run_folder
from rwml_lightning.stages import WarmUp
from rwml_lightning.summary import print_evaluation, print_summary
from rwml_lightning.terminal import Terminal

COMMANDS: dict[str, Callable[..., None]] = {
    "collect": collect,
    "evaluate": evaluate,
    "audit": audit,
    "what_if": what_if,
    "export": export,
    "weight_change": weight_change,
}
"""Commands that Lightning does not have. A command with an argument ``configured`` takes a config."""


def takes_config(command: str) -> bool:
    """Return whether a command takes a config."""
    return command not in COMMANDS or "configured" in inspect.signature(COMMANDS[command]).parameters


class RWMLCLI(LightningCLI):
    """Command line with Lightning's ``fit``, ``validate`` and ``test``, and :data:`COMMANDS`."""

    model: PolicyModule
    datamodule: RolloutDataModule

    def __init__(self, args: ArgsType = None) -> None:
        self.folder: RunFolder | None = None
        self.memory: Plan | None = None
        super().__init__(
            model_class=PolicyModule,
            datamodule_class=RolloutDataModule,
            trainer_defaults={
                "max_epochs": 1,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "logger": False,
                "enable_model_summary": False,
                "limit_val_batches": 1.0,
                "check_val_every_n_epoch": None,
                "val_check_interval": 1_000_000_000,
            },
            subclass_mode_model=True,
            save_config_callback=None,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=ReadableParser,
            args=args,
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "weights_only"},
        }

    @override
    def _add_subcommands(self, parser: Any, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        for name, command in COMMANDS.items():
            description = (command.__doc__ or "").partition("\n")[0]
            subparser = self.init_parser(description=description)
            if takes_config(name):
                self._add_arguments(subparser)
            added = subparser.add_function_arguments(command, skip={"configured"})
            self._subcommand_method_arguments[name] = added
            self._subcommand_parsers[name] = subparser
            parser._subcommands_action.add_subcommand(name, subparser, help=description)

    @override
    def _parse_ckpt_path(self) -> None:
        """Read no settings from a checkpoint, unlike Lightning: all settings come from the config."""

    @override
    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.add_argument("--run", type=Run, default=Run(), help="Name and folder of the run.")
        parser.add_argument("--warm_up", type=WarmUp | None, default=None, help="SFT warm-up before GRPO.")
        parser.add_argument(
            "--checkpoint_every",
            type=int,
            default=50,
            help="Optimizer steps between two checkpoints, which are saved at the end of a batch.",
        )
        parser.add_argument(
            "--control",
            type=ControlName,
            default="none",
            help="Train on a reward without information, as a control. The run is named after the control.",
        )
        parser.link_arguments("seed_everything", "data.seed")

    @override
    def before_instantiate_classes(self) -> None:
        if not takes_config(str(self.subcommand)):
            return
        config = self.config[self.subcommand]
        check_config(config)
        name_control(config)
        if config.trainer.max_epochs != 1:
            raise ValueError(
                f"trainer.max_epochs is {config.trainer.max_epochs}, but all passes over the data form one epoch; remove it and "
                "set num_passes of data.predictions or data.episodes"
            )
        model = config.model.init_args.model
        generator = config.data.generator
        if isinstance(generator, Namespace) and generator.init_args.get("model", "") is None:
            generator.init_args.model = model

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer | None:  # type: ignore[override]
        command = str(self.subcommand)
        if not takes_config(command):
            return None
        check_stage(command, self.model, self.datamodule)
        self.memory = check_run(command, self.config[command], self.model, self.datamodule)
        if command in COMMANDS:
            return None
        if command == "fit":
            run, config = self._get(self.config_init, "run"), self._run_config()
            self.folder = RunFolder(
                Path(parallel.agree("run_folder", lambda: str(open_run_folder(run, config).path)))
            )
        else:
            kwargs["enable_checkpointing"] = False
        trainer = self._get(self.config_init, "trainer")
        kwargs["strategy"] = parallel.find_strategy(trainer.get("strategy", "auto"))
        given = trainer.get("callbacks") or []
        every = self._get(self.config_init, "checkpoint_every")
        kwargs["callbacks"] = [*given, *default_callbacks(given, self.folder, every)]
        made = super().instantiate_trainer(**kwargs)
        keep_handlers(made)
        return made

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand not in COMMANDS:
            super()._run_subcommand(subcommand)
            return
        names = self._subcommand_method_arguments[subcommand]
        arguments = {name: self.config_init[subcommand][name] for name in names}
        if takes_config(subcommand):
            arguments["configured"] = self._configured(subcommand)
        COMMANDS[subcommand](**arguments)

    def _configured(self, command: str) -> Configured:
        loggers = self._get(self.config_init, "trainer").get("logger") or []
        return Configured(
            self.model,
            self.datamodule,
            self._get(self.config_init, "run"),
            self._parser(command).dump(self.config[command], skip_none=False),
            loggers if isinstance(loggers, list) else [loggers],
            self._evaluating_trainer,
        )

    def _evaluating_trainer(self) -> L.Trainer:
        """Make a trainer for several models, without the config's callbacks, which would treat them as one run."""
        callbacks = default_callbacks([], None, None)
        strategy = parallel.find_strategy(self._get(self.config_init, "trainer").get("strategy", "auto"))
        made = super().instantiate_trainer(
            logger=False, callbacks=callbacks, enable_checkpointing=False, strategy=strategy
        )
        keep_handlers(made)
        return made

    def _run_config(self) -> str:
        """Return the whole config for every command. ``ckpt_path``, which only ``fit`` takes, becomes a comment."""
        text = self._parser("fit").dump(self.config["fit"], skip_none=False)
        lines = [line for line in text.splitlines() if not line.startswith("ckpt_path:")]
        given = self._get(self.config_init, "ckpt_path")
        return "\n".join([*([f"# --ckpt_path {printable(given)}"] if given else []), *lines, ""])

    def fit(self, model: PolicyModule, **kwargs: Any) -> None:
        """Run all stages of the config, or resume them where an earlier run of the same config stopped."""
        assert self.folder is not None
        if self.trainer.is_global_zero:
            print(printable(f"run folder: {self.folder.path}"), file=sys.stderr)
            if self.memory is not None:
                Terminal(stderr=True).print(self.memory.table())
        settings, callbacks = self._get(self.config_init, "warm_up"), default_callbacks([], self.folder, None)
        pipeline.run(
            self.trainer, model, self.datamodule, self.folder, settings, callbacks, kwargs.get("ckpt_path")
        )
        if self.trainer.is_global_zero and self.folder.trace.exists():
            print_summary(self.folder)

    def validate(self, model: PolicyModule, **kwargs: Any) -> None:
        """Print a table of held-out results of a checkpoint, or of the config's model."""
        self._evaluate_with(self.trainer.validate, model, kwargs)
        if model.reads == "predictions" and not model.held_out.results:
            raise ValueError(f"{self.datamodule.need_predictions().path} holds no validation transitions")
        if self.trainer.is_global_zero:
            print_evaluation(model)

    def test(self, model: PolicyModule, **kwargs: Any) -> None:
        """Measure the success of a policy on all held-out games, or on the games in ``data.episodes.test``."""
        self._evaluate_with(self.trainer.test, model, kwargs)
        if self.trainer.is_global_zero:
            print_evaluation(model)

    def _evaluate_with(
        self, command: Callable[..., Any], model: PolicyModule, kwargs: dict[str, Any]
    ) -> None:
        given = {k: v for k, v in kwargs.items() if k not in ("verbose", "datamodule")}
        try:
            command(model, self.datamodule, verbose=False, weights_only=True, **given)
        finally:
            self.datamodule.close()


def default_callbacks(
    given: list[Callback], folder: RunFolder | None, checkpoint_every: int | None
) -> list[Callback]:
    """Return the callbacks of every run, except classes that the config already has."""
    from rwml_callbacks import (
        EpisodeTable,
        PredictionTable,
        RewardHackingWatch,
        RewardLogger,
        RolloutProgressBar,
        StepCheckpoint,
        TraceRecorder,
        WeightSync,
    )

    defaults: list[Callback] = [
        WeightSync(),
        RewardHackingWatch(),
        RewardLogger(folder.metrics if folder else None),
        PredictionTable(),
        EpisodeTable(),
        RolloutProgressBar(),
    ]
    if folder is not None:
        defaults.append(TraceRecorder(folder.trace, saves_checkpoints=checkpoint_every is not None))
    if folder is not None and checkpoint_every is not None:
        defaults.append(StepCheckpoint(folder.checkpoints, checkpoint_every))
    return [callback for callback in defaults if not any(isinstance(one, type(callback)) for one in given)]


def name_control(config: Namespace) -> None:
    """Add the name of the control to the run and its loggers, so that no plot of it looks like one of the true reward."""
    if config.control == "none":
        return
    if config.data.predictions is None:
        raise ValueError(
            f"control is {config.control!r}, which replaces the rewards of predictions, but data.predictions is not set"
        )
    config.data.predictions.control = config.control
    suffix = f"-{config.control}"
    config.run.name = config.run.name.removesuffix(suffix) + suffix
    loggers = config.trainer.logger
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, Namespace) and "name" in logger.get("init_args", ()):
            given = logger.init_args.name
            logger.init_args.name = given.removesuffix(suffix) + suffix if given else config.run.name


def quieten() -> None:
    """Silence the messages of libraries, and print untrusted text to the terminal without control sequences."""
    guard_terminal()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
        logging.getLogger("rwml_lightning").setLevel(logging.ERROR)  # rank 0 says what all do
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def main(args: list[str] | None = None) -> None:
    """Run the command line. An error of the user ends in one line and exit code 2."""
    arguments = sys.argv[1:] if args is None else args
    quieten()
    commands = [*RWMLCLI.subcommands(), *COMMANDS]
    try:
        if arguments and arguments[0].startswith("-") and any(a in commands for a in arguments):
            command = next(a for a in arguments if a in commands)
            raise ValueError(
                f"the command comes first: python -m rwml_lightning {command} {arguments[0]} ..."
            )
        with handled():
            RWMLCLI(repeat_option("--models", arguments))
    except Interrupted as error:
        go_on = "; the same command goes on" if arguments[:1] in (["fit"], ["collect"]) else ""
        print(printable(f"{error}{go_on}"), file=sys.stderr)
        raise
    except (
        ValueError,
        FileNotFoundError,
        ModuleNotFoundError,
        ServerError,
        ServersGoneError,
        MisconfigurationException,
        parallel.RankError,
    ) as error:
        if logging.getLogger("rwml_lightning").isEnabledFor(logging.DEBUG):
            raise
        print(printable(f"error: {reason(error)}"), file=sys.stderr)
        raise SystemExit(2) from error
