"""The command line: Lightning's own, with a run folder, a warm-up, and commands more (``collect``, ``evaluate``, ``audit``, ``what_if``, ``export``)."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from rwml_lightning.config_errors import ReadableParser, reason
from rwml_lightning.credentials import check_config
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.evaluation import render_episodes
from rwml_lightning.loggers import introduce, settle
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.modules.playing import PlayingModule
from rwml_lightning.modules.world_model import WorldModelModule
from rwml_lightning.named import look_for_all
from rwml_lightning.printable import guard_terminal, printable
from rwml_lightning.rewards import ServerError
from rwml_lightning.rewards.controls import ControlName
from rwml_lightning.run import Run, RunFolder, open_run_folder
from rwml_lightning.stages import WarmUp, fit_stage, record_collection, warm_up
from rwml_lightning.summary import print_summary
from rwml_lightning.terminal import Terminal
from rwml_lightning.trainer import NO_TRAINING, RWMLTrainer

log = logging.getLogger(__name__)


class RWMLCLI(LightningCLI):
    """``fit``, ``validate``, ``test``, ``collect``, ``evaluate``, ``audit`` and ``what_if`` from a config; see :func:`main` for ``export``."""

    model: PolicyModule
    datamodule: RolloutDataModule
    trainer: RWMLTrainer

    def __init__(self, args: ArgsType = None) -> None:
        self.folder: RunFolder | None = None
        super().__init__(
            model_class=PolicyModule,
            datamodule_class=RolloutDataModule,
            trainer_class=RWMLTrainer,
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
            "collect": {"model", "datamodule"},
            "audit": {"model", "datamodule", "default_output"},
            "what_if": {"model", "datamodule"},
            "evaluate": {"model", "datamodule", "settings", "loggers"},
        }

    @override
    def _parse_ckpt_path(self) -> None:
        """Take no settings from a checkpoint, as Lightning would: they are the config's."""

    @override
    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.add_argument("--run", type=Run, default=Run(), help="Which run this is, and where it lies.")
        parser.add_argument("--warm_up", type=WarmUp | None, default=None, help="Next-state SFT before GRPO.")
        parser.add_argument(
            "--checkpoint_every",
            type=int,
            default=50,
            help="Optimizer steps between two checkpoints; one is saved at the end of a batch.",
        )
        parser.add_argument(
            "--control",
            type=ControlName,
            default="none",
            help="Train on a reward that knows nothing; the run is named after it.",
        )
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("control", "data.control")

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        check_config(config)
        name_control(config)
        if config.trainer.max_epochs != 1:
            raise ValueError(
                f"trainer.max_epochs is {config.trainer.max_epochs}, but all passes over the data make up one epoch: leave it "
                "out, and set data.num_passes"
            )
        model = config.model.init_args.model
        generator = config.data.generator
        if isinstance(generator, Namespace) and generator.init_args.get("model", "") is None:
            generator.init_args.model = model

    @override
    def instantiate_trainer(self, **kwargs: Any) -> RWMLTrainer:
        assert self.subcommand is not None
        check_stage(self.subcommand, self.model, self.datamodule)
        look_for_all(self.subcommand, self.config[self.subcommand], self.model, self.datamodule)
        if self.subcommand != "fit":
            kwargs["enable_checkpointing"] = False
        if self.subcommand == "evaluate":
            # The config's callbacks would take several models for one run; its loggers get the table alone.
            return super().instantiate_trainer(  # type: ignore[return-value]
                **kwargs, logger=False, callbacks=default_callbacks([], None, None)
            )
        if self.subcommand in ("audit", "what_if"):
            kwargs |= NO_TRAINING
        elif self.subcommand != "collect":
            if self.subcommand == "fit":
                run = self._get(self.config_init, "run")
                self.folder = open_run_folder(run, self._run_config())
            given = self._get(self.config_init, "trainer").get("callbacks") or []
            every = self._get(self.config_init, "checkpoint_every")
            kwargs["callbacks"] = [*given, *default_callbacks(given, self.folder, every)]
        return super().instantiate_trainer(**kwargs)  # type: ignore[return-value]

    def _run_config(self) -> str:
        """The whole config, as every command takes it; what only ``fit`` takes stands in a comment."""
        text = self._parser("fit").dump(self.config["fit"], skip_none=False)
        lines = [line for line in text.splitlines() if not line.startswith("ckpt_path:")]
        given = self._get(self.config_init, "ckpt_path")
        return "\n".join([*([f"# --ckpt_path {printable(given)}"] if given else []), *lines, ""])

    def fit(self, model: PolicyModule, **kwargs: Any) -> None:
        """All stages of the config, from where an earlier run of the same config stopped."""
        from rwml_callbacks import EasySampleFilter

        assert self.folder is not None
        print(printable(f"run folder: {self.folder.path}"), file=sys.stderr)
        if not self.folder.finished:
            self.datamodule.record_episodes = partial(record_collection, self.folder.trace)
            for logger in self.trainer.loggers:
                introduce(logger, self.folder)
            try:
                wanted = self._get(self.config_init, "warm_up")
                if wanted is not None and (model.init_from is None or isinstance(model, PlayingModule)):
                    callbacks = default_callbacks([], self.folder, None)
                    result = warm_up(wanted, model, self.datamodule, self.trainer, self.folder, callbacks)
                    model.init_from = str(result)
                for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(callback, EasySampleFilter):  # before the policy takes memory
                        callback.apply(self.trainer, model, self.datamodule)
                fit_stage(self.trainer, model, self.datamodule, self.folder, kwargs.get("ckpt_path"))
            finally:
                self.datamodule.close()
        if self.trainer.is_global_zero and self.folder.trace.exists():
            print_summary(self.folder)

    def audit(self, **kwargs: Any) -> None:
        """See :meth:`RWMLTrainer.audit`; the same config finds its folder again, another one gets its own."""
        run = self._get(self.config_init, "run")
        text = self._parser("audit").dump(self.config["audit"], skip_none=False)
        self.trainer.audit(
            default_output=lambda: open_run_folder(replace(run, name=f"{run.name}-audit"), text).path,
            **kwargs,
        )

    def validate(self, model: PolicyModule, **kwargs: Any) -> None:
        """Held-out results of a checkpoint, or of the model as it is, as a table."""
        from rwml_lightning.evaluation import render_results

        self._evaluate_with(self.trainer.validate, model, kwargs)
        if isinstance(model, PlayingModule):
            print_played(model)
            return
        assert isinstance(model, WorldModelModule)
        if not self.datamodule.validation_transitions:
            raise ValueError(f"{self.datamodule.path} holds no validation transitions")
        Terminal().print(render_results("Held-out transitions", model.results))
        Terminal().print(render_results("Floors: predictors without a model", model.floors))

    def test(self, model: PolicyModule, **kwargs: Any) -> None:
        """Success of a policy on all held-out games, or on those that ``data.play.test`` names."""
        assert isinstance(model, PlayingModule)
        self._evaluate_with(self.trainer.test, model, kwargs)
        print_played(model)

    def _evaluate_with(
        self, command: Callable[..., Any], model: PolicyModule, kwargs: dict[str, Any]
    ) -> None:
        given = {k: v for k, v in kwargs.items() if k not in ("verbose", "datamodule")}
        try:
            command(model, self.datamodule, verbose=False, weights_only=True, **given)
        finally:
            self.datamodule.close()

    def evaluate(
        self,
        model: PolicyModule,
        datamodule: RolloutDataModule,
        models: list[str],
        output: str | None,
    ) -> None:
        """Results of several models as one table; see :meth:`RWMLTrainer.evaluate`."""
        config = self.config[self.subcommand]
        plain = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False))
        settings = {key: plain[key] for key in ("data", "seed_everything")}
        run = self._get(self.config_init, "run")
        folder = output or str(Path(run.root) / f"evaluate-{run.name}")
        loggers = self._get(self.config_init, "trainer").get("logger") or []
        loggers = loggers if isinstance(loggers, list) else [loggers]
        for logger in loggers:
            settle(logger, Path(folder))
        self.trainer.evaluate(model, datamodule, settings, loggers, models, folder)


def check_stage(command: str, model: PolicyModule, data: RolloutDataModule) -> None:
    """Refuse a module that cannot do what the command asks for, whatever else is there."""
    stage = type(model).__name__
    if command == "test" and not isinstance(model, PlayingModule):
        raise ValueError(f"test plays episodes, which {stage} does not; measure it with validate or evaluate")
    if command == "fit" and data.control != "none" and not model.on_policy:
        raise ValueError(
            f"control is {data.control!r}, which replaces rewards, but {stage} learns from labels; leave control out"
        )


def print_played(module: PlayingModule) -> None:
    """Tables of the last evaluation: games, and predictions where some were made."""
    from rwml_lightning.evaluation import render_results

    Terminal().print(render_episodes("Evaluation games", {row.name: row for row in module.results}))
    if module.probe_groups:
        Terminal().print(render_results("Held-out transitions", module.probe_results))


def default_callbacks(
    given: list[Callback], folder: RunFolder | None, checkpoint_every: int | None
) -> list[Callback]:
    """What every run has, unless the config brings its own of the kind."""
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
        RewardHackingWatch(),  # before the logger, which hands its metrics on
        RewardLogger(folder.metrics if folder else None),
        PredictionTable(),
        EpisodeTable(),
        RolloutProgressBar(),
    ]
    if folder is not None:
        defaults.append(TraceRecorder(folder.trace))
    if folder is not None and checkpoint_every is not None:
        defaults.append(StepCheckpoint(folder.checkpoints, checkpoint_every))
    return [callback for callback in defaults if not any(isinstance(own, _kind(callback)) for own in given)]


def _kind(default: Callback) -> type[Callback]:
    """Class of the callbacks that take the place of a default."""
    return ModelCheckpoint if isinstance(default, ModelCheckpoint) else type(default)


def name_control(config: Namespace) -> None:
    """Name a control in the run and in its loggers, so that none of its plots can be taken for the true reward's."""
    if config.control == "none":
        return
    suffix = f"-{config.control}"
    config.run.name = config.run.name.removesuffix(suffix) + suffix
    loggers = config.trainer.logger
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, Namespace) and "name" in logger.get("init_args", ()):
            given = logger.init_args.name
            logger.init_args.name = given.removesuffix(suffix) + suffix if given else config.run.name


def quieten() -> None:
    """Leave the terminal to what a user wants to know, and let no text of others steer it."""
    guard_terminal()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def repeat_option(option: str, arguments: Sequence[str]) -> list[str]:
    """``--models A B`` as jsonargparse takes a list: ``--models+=A --models+=B``."""
    spread: list[str] = []
    within = False
    for argument in arguments:
        if argument == option or argument.startswith("-"):
            within = argument == option
        if argument != option:
            spread.append(f"{option}+={argument}" if within else argument)
    return spread


def main(args: list[str] | None = None) -> None:
    """Entry point of ``python -m rwml_lightning``; a user's mistake ends in one line and exit code 2."""
    arguments = sys.argv[1:] if args is None else args
    quieten()
    commands = (
        "fit",
        "validate",
        "test",
        "collect",
        "evaluate",
        "audit",
        "what_if",
        "export",
        "weight_change",
    )
    try:
        if arguments[:1] == ["export"]:
            from rwml_lightning.export import export_command

            export_command(arguments[1:])
        elif arguments[:1] == ["weight_change"]:
            from rwml_lightning.weight_change import weight_change_command

            weight_change_command(arguments[1:])
        elif arguments and arguments[0].startswith("-") and any(a in commands for a in arguments):
            command = next(a for a in arguments if a in commands)
            raise ValueError(
                f"the command comes first: python -m rwml_lightning {command} {arguments[0]} ..."
            )
        else:
            sys.argv = [sys.argv[0], *repeat_option("--models", arguments)]
            RWMLCLI()
    except (
        ValueError,
        FileNotFoundError,
        ModuleNotFoundError,
        ServerError,
        MisconfigurationException,
    ) as error:
        if logging.getLogger("rwml_lightning").isEnabledFor(logging.DEBUG):
            raise
        print(printable(f"error: {reason(error)}"), file=sys.stderr)
        raise SystemExit(2) from error
