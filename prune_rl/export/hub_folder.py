"""The text of a model card as the Hugging Face hub reads it, and its results file. Nothing is uploaded."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence

from prune_rl.export.policy import Policy


@dataclasses.dataclass(frozen=True)
class HubCard:
    """What the card is made of.

    Attributes:
        policy: the policy.
        metadata: see `prune_rl.export.metadata.metadata_of`.
        returns: of every evaluation episode, in NumPy; empty if there was no evaluation.
        dense: likewise of the dense control; empty without one.
        files: names of the files in the folder, with a few words on each.
        picture: name of the picture, "" without one.
    """

    policy: Policy
    metadata: Mapping[str, str]
    returns: Sequence[float]
    dense: Sequence[float]
    files: Mapping[str, str]
    picture: str = ""

    def readme(self) -> str:
        """README.md: a YAML block with the model index, then a description."""
        env, algorithm = (
            self.metadata.get("environment", "unknown"),
            self.metadata.get("algorithm", "unknown"),
        )
        widths = "·".join(map(str, self.policy.widths)) or "no hidden layer"
        lines = [
            "---",
            *self._yaml(env, algorithm),
            "---",
            "",
            f"# {algorithm.upper()} on {env}, {widths}",
            "",
        ]
        lines.append(
            f"A policy of {self.policy.num_weights:,} weights and biases, {self.policy.nbytes:,} bytes with its "
            "observation statistics, trained and pruned by prune_rl."
        )
        if self.returns:
            lines += ["", f"| | return, mean ± std of {len(self.returns)} episodes |", "|---|---:|"]
            lines.append(f"| this policy | {_mean_and_std(self.returns, '±')} |")
            if self.dense:
                lines.append(f"| dense control | {_mean_and_std(self.dense, '±')} |")
        if self.picture:
            lines += ["", f"![return and kept neurons over environment steps]({self.picture})"]
        lines += ["", "```python", "import prune_rl", "", 'policy = prune_rl.load_policy(".")  # this folder']
        lines += ["action = policy(obs)", "```", "", "| file | content |", "|---|---|"]
        lines += [f"| `{name}` | {what} |" for name, what in self.files.items()]
        lines += ["", "| | |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in self.metadata.items()]
        return "\n".join(lines) + "\n"

    def _yaml(self, env: str, algorithm: str) -> list[str]:
        quoted = json.dumps  # a string of JSON is one of YAML
        tags = ["reinforcement-learning", "deep-reinforcement-learning", "pruning", env]
        lines = ["library_name: prune_rl", "tags:", *(f"- {quoted(tag)}" for tag in tags)]
        if not self.returns:
            return lines
        return [
            *lines,
            "model-index:",
            f"- name: {quoted(f'{algorithm}-{env}')}",
            "  results:",
            "  - task:",
            "      type: reinforcement-learning",
            "      name: reinforcement-learning",
            "    dataset:",
            f"      name: {quoted(env)}",
            f"      type: {quoted(env)}",
            "    metrics:",
            "    - type: mean_reward",
            f"      value: {quoted(_mean_and_std(self.returns, '+/-'))}",
            "      name: mean_reward",
            "      verified: false",
        ]

    def results(self) -> str:
        """results.json."""
        document = {
            "mean_reward": statistics.fmean(self.returns) if self.returns else None,
            "std_reward": statistics.pstdev(self.returns) if self.returns else None,
            "is_deterministic": True,
            "n_eval_episodes": len(self.returns),
            "returns": list(self.returns),
            "dense_returns": list(self.dense),
            "metadata": dict(self.metadata),
        }
        return json.dumps(document, indent=1) + "\n"


def _mean_and_std(returns: Sequence[float], sign: str) -> str:
    return f"{statistics.fmean(returns):.2f} {sign} {statistics.pstdev(returns):.2f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
