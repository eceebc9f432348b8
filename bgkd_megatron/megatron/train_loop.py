"""The training run: build or restore, step, evaluate, save."""

from __future__ import annotations

import math
import time

import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.megatron import build, checkpoint_dir
from bgkd_megatron.megatron.checkpoint import TrainState, load_checkpoint, save_checkpoint
from bgkd_megatron.megatron.config import TrainConfig
from bgkd_megatron.megatron.console import open_report, valid_line
from bgkd_megatron.megatron.dataset import global_batch
from bgkd_megatron.megatron.errors import RunError
from bgkd_megatron.megatron.evaluation import evaluate, evaluation_loss
from bgkd_megatron.megatron.gradients import Gradients
from bgkd_megatron.megatron.loss import DistillationLoss, mean_metrics
from bgkd_megatron.megatron.memory import memory_metrics
from bgkd_megatron.megatron.optimizer import build_optimizer, build_scheduler
from bgkd_megatron.megatron.run_log import RunLog
from bgkd_megatron.megatron.stop_signal import StopSignal
from bgkd_megatron.objectives.hybrid import HybridObjective

__all__ = ["train"]


def train(config: TrainConfig) -> None:
    """Run `config` from its latest checkpoint, or from the start, to its last step or to SIGTERM.

    Needs the process groups of config.parallel.  Raises RunError when loss or gradient are not
    finite and training.not_finite is "stop", and RunError or RankError when a file cannot be
    written; the latest checkpoint then stays as it is.
    """
    run = _Run(config)
    with StopSignal() as stop:  # also while the log is closed, after the last save
        try:
            run.train_until(stop)
        except Exception as error:
            error.add_note(f"in step {run.state.iteration + 1}")
            raise
        finally:
            run.close()


class _Run:
    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.model_config = config.student.model()
        vocab_size = self.model_config.vocab_size
        teacher = build.build_teacher(config)
        self.loss = DistillationLoss(
            HybridObjective(config.objective, vocab_size),
            teacher if config.objective.needs_teacher else None,
            gradient_in_forward=config.training.gradient_in_forward,
            seed=config.training.seed,
            final_logits=self.model_config.final_logits,
        )
        self.valid_loss = evaluation_loss(config, self.model_config, teacher)
        factory = build.dataset_factory(config, vocab_size)
        self.train_set = factory.train(
            config.data.train,
            config.data.weights,
            config.training.steps * config.training.global_batch_size,
        )
        self.valid_sets = build.valid_sets(config, factory)
        student = build.build_student(config, self.model_config)
        self.gradients = Gradients(student, config.parallel)
        optimizer = build_optimizer(
            config.optimizer, config.parallel, self.gradients.model, build.dtype(config)
        )
        scheduler = build_scheduler(config.optimizer, optimizer, config.training.steps)
        self.state = TrainState(self.gradients.model, optimizer, scheduler)
        checkpoint = checkpoint_dir.latest(config.checkpoint.dir)
        if checkpoint is not None:
            load_checkpoint(self.state, config, checkpoint)
        self._saved = self.state.iteration
        # One rank tells; after the reduction of the metrics all know the same.
        self.log = self.report = None
        if dist.get_rank() == 0:
            first_step = self.state.iteration
            self.log = RunLog(config, first_step)
            self.report = open_report(config.training.steps, first_step)
        if checkpoint is not None:
            self._tell(
                f"{self.state.iteration} of {config.training.steps} steps are done: {checkpoint}"
            )

    def train_until(self, stop: StopSignal) -> None:
        """All remaining steps, or those up to the stop signal; saves the last one."""
        config, state = self.config, self.state
        steps = config.training.steps
        self._evaluate(stop)
        while state.iteration < steps and not stop.agreed:
            metrics = self._step()
            state.iteration += 1
            if self.log and self.report and state.iteration % config.logging.interval == 0:
                self.log.train(state.iteration, metrics)
                self.report.step(state.iteration, metrics)
            stop.agree()
            last = state.iteration == steps
            if last or state.iteration % config.checkpoint.interval == 0:
                self._save()
            self._evaluate(stop)
        if stop.agreed:
            self._save()
            self._tell(f"SIGTERM: stopped after step {state.iteration}; start again to go on")

    def _step(self) -> dict[str, float]:
        """One update of the student from one global batch; returns the metrics of the step."""
        start = time.monotonic()
        config, state = self.config, self.state
        size = config.training.global_batch_size
        batches = global_batch(
            self.train_set,
            range(state.iteration * size, (state.iteration + 1) * size),
            config.training.micro_batch_size,
        )
        state.optimizer.zero_grad()
        reports: list[dict[str, Tensor]] = self.gradients.of(
            self.loss,
            batches,
            progress=state.iteration / config.training.steps,
            iteration=state.iteration,
        )
        metrics = mean_metrics(reports)
        state.scheduler.step(1)
        if metrics["tokens"]:  # else every gradient is 0 and only the momentum would move weights
            metrics["grad_norm"] = self._update(metrics["loss"])
        if config.training.not_finite == "skip":
            metrics["skipped_steps"] = state.skipped
        seconds = time.monotonic() - start
        # Masked tokens cost as much as others.
        tokens = config.training.global_batch_size * config.data.seq_length
        return {
            **metrics,
            "lr": state.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_rank": tokens / seconds / dist.get_world_size(),
            **memory_metrics(),
        }

    def _update(self, loss: float) -> float:
        """Change the weights by the gradients; returns the norm of these."""
        optimizer = self.state.optimizer
        if self.config.training.not_finite == "stop":
            self._require_finite("loss", loss)
            _, norm, _ = optimizer.step()
            self._require_finite("gradient norm", norm)
            return float(norm)
        optimizer.prepare_grads()
        norm = float(optimizer.get_grad_norm())
        if math.isfinite(loss) and math.isfinite(norm):
            optimizer.step()
        else:  # the same on all ranks: both are sums over them
            self.state.skipped += 1
            self._tell(
                f"step {self.state.iteration + 1} is skipped: loss {loss}, gradient norm {norm}"
            )
        return norm

    def _require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise RunError(
                f"step {self.state.iteration + 1}: the {name} is {value}; nothing was saved after "
                "the latest checkpoint. Lower optimizer.lr, check the data of this step, or set "
                "training.not_finite=skip"
            )

    def _evaluate(self, stop: StopSignal) -> None:
        """All held-out sets, where they are due and no stop is agreed."""
        step, steps = self.state.iteration, self.config.training.steps
        interval = self.config.evaluation.interval
        due = step in (0, steps) or (interval is not None and step % interval == 0)
        if stop.agreed or not due:
            return
        results = evaluate(
            self.state.model,
            self.valid_loss,
            self.valid_sets,
            self.config,
            progress=step / steps,
            stop=stop,
        )
        for name, metrics in (results or {}).items():
            if self.log:
                self.log.valid(step, name, metrics)
            self._tell(f"after step {step}, {valid_line(name, metrics)}")

    def _save(self) -> None:
        if self.state.iteration in (0, self._saved):
            return
        save_checkpoint(self.state, self.config, self.model_config, build.tokenizer(self.config))
        self._saved = self.state.iteration
        self._tell(f"saved {checkpoint_dir.latest(self.config.checkpoint.dir)}")

    def _tell(self, text: str) -> None:
        if self.report:
            self.report.message(text)

    def close(self) -> None:
        """Close the log; the checkpoints are complete at any time."""
        if self.log and self.report:
            self.report.close()
            self.log.close()
