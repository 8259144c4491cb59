"""One training loop for the three stages: seeded, resumable, on a budget of core-minutes instead of steps.

The learning rate follows the share of the budget that is used, so a run that is slowed down or stopped and continued
ends where it should. A line a report goes to OUT/STAGE.jsonl, the state to OUT/STAGE.state. SIGTERM saves, then ends.

A loss that leaves its level behind by half is a training that blows up: model and optimizer go back to the last good
step, and the rate is halved from there.
"""
import contextlib
import copy
import json
import math
import os
import signal
import sys
import tempfile
import time

import torch


BLOWN_UP, SNAPSHOT_STEPS = 1.5, 100


@contextlib.contextmanager
def compile_cache(out):
    """A folder of its own for torch.compile: a compilation that was cut short would break a shared one."""
    with tempfile.TemporaryDirectory(dir=out) as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        yield


class Loop:
    def __init__(self, out, stage, model, minutes, rate, seed=0, final_share=0.02, clip=1.0, betas=(0.8, 0.99), weight_decay=0.01,
                 checkpoint_minutes=3.0, warmup=200):
        torch.manual_seed(seed)
        self.path, self.model, self.budget = f"{out}/{stage}", model, max(minutes * 60, 1e-3)
        self.rate, self.final_share, self.clip, self.warmup = rate, final_share, clip, warmup
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=betas, weight_decay=weight_decay, fused=True)
        self.every, self.step, self.used_before, self.saved_at = checkpoint_minutes * 60, 0, 0.0, 0.0
        self.started = time.process_time()
        if os.path.exists(self.path + ".state"):
            state = torch.load(self.path + ".state", weights_only=True)
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                group["fused"] = True                        # whatever the state says
            self.step, self.used_before, self.rate = state["step"], state["used"], state["rate"]
            print(f"{stage}: continues at step {self.step}, {self.used_before / 60:.1f} core-minutes used", flush=True)
        self.saved_at = self.used()
        self.level, self.best, self.snapshot = None, math.inf, None
        self.generator = torch.Generator().manual_seed(seed * 1000003 + self.step)
        self.sums, self.ending = {}, False
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_):
        self.ending = True

    def used(self):
        """Seconds of processor time, earlier runs included."""
        return self.used_before + time.process_time() - self.started

    def going(self):
        return self.used() < self.budget

    def share(self):
        """Of the budget that is used, 0 to 1."""
        return min(1.0, self.used() / self.budget)

    def _rate_now(self):
        cosine = self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * self.share()))
        return self.rate * min(1.0, (self.step + 1) / self.warmup) * cosine

    def update(self, loss, figures, report_every=50):
        """One optimizer step; figures {name: number} are averaged between reports."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        if torch.isfinite(norm):
            rate = self._rate_now()
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        else:
            figures = {"skipped": 1.0}
        self.step += 1
        self._watch(loss.item())
        for name, value in figures.items():
            total, n = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + float(value), n + 1)
        if self.step % report_every == 0:
            self.report()
        if self.ending or self.used() - self.saved_at > self.every:
            self.save()
        if self.ending:
            sys.exit(128 + signal.SIGTERM)

    def _watch(self, loss):
        """Keeps a good state in memory, and goes back to it when the loss's running mean has left its best behind."""
        if not math.isfinite(loss):
            loss = 10 * self.best if math.isfinite(self.best) else 1e3
        self.level = loss if self.level is None else 0.97 * self.level + 0.03 * loss
        if self.snapshot and self.level > BLOWN_UP * self.best:
            self.model.load_state_dict(self.snapshot[0])
            self.optimizer.load_state_dict(copy.deepcopy(self.snapshot[1]))
            self.rate, self.level = self.rate / 2, self.best
            print(f"step {self.step}: the loss blew up; back to a good state, rate now {self.rate:g}", flush=True)
        elif self.step % SNAPSHOT_STEPS == 0 and self.level < 1.1 * self.best:
            self.snapshot = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        self.best = min(self.best, self.level) if self.step >= SNAPSHOT_STEPS else math.inf

    def report(self):
        row = {"step": self.step, "minutes": round(self.used() / 60, 2), "rate": round(self._rate_now(), 7)}
        row.update({k: round(total / n, 4) for k, (total, n) in self.sums.items()})
        self.sums = {}
        with open(self.path + ".jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def save(self):
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step,
                 "used": self.used(), "rate": self.rate}
        torch.save(state, self.path + ".state.part")
        os.replace(self.path + ".state.part", self.path + ".state")
        self.saved_at = self.used()

    def finish(self):
        self.report()
        self.save()
