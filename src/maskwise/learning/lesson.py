"""Learn a masking policy from a task, with the settings of a recipe.

A masking policy is a model that gives each word of a text a weight. Words with a larger weight are
masked more often. The output is ``policy/`` (the model and its card), ``metrics.jsonl``,
``shown.json`` (the mean weights of common words, and example texts with the weights before and
after learning) and, with several tries, a folder ``try-N/`` for each try. A stopped run resumes if
it is started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from maskwise.annotate.registry import annotators
from maskwise.base.constants import GAIN, POLICY_TAGGERS, Kind, rank_here, ranks_here
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import finite, require_file, write_folder, write_json, write_whole
from maskwise.base.printing import LOGGER
from maskwise.learning.annotator import Floats
from maskwise.learning.card import Measures, measures_of, policy_card, show, word_weights
from maskwise.learning.examples import Examples
from maskwise.learning.gradients import Losses
from maskwise.learning.labels import Labels, labels_of
from maskwise.learning.meta import MetaResult, learn_policy, losses_of
from maskwise.learning.scorer import PolicyModel
from maskwise.learning.settings import LearningSettings
from maskwise.learning.supervised import learn_supervised
from maskwise.masking.draws import fold
from maskwise.models.cards import front_matter
from maskwise.tasks.loading import load_task
from maskwise.tasks.settings import FinetuneSettings
from maskwise.tasks.task import Task
from maskwise.text import Document, load_tokenizer, tokenise
from maskwise.text.own_tokenizer import other_ids
from maskwise.text.settings import CorpusSettings, TokenizerSettings
from maskwise.training.building import model_from
from maskwise.training.data import log_frequencies
from maskwise.training.settings import ModelSettings, TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHARED_TOKENIZER = "tokenizer"
LEARNING = 0x9011C7
"""A constant that is mixed into the seed of the run to get a different seed for learning."""


class LearnedTry(NamedTuple):
    """The result of one try (one learned policy) with the meta-gradient.

    Attributes:
        policy: the policy at the step with the best gain on dev.
        before: for each example text, the weights (W,) of its words before learning.
        result: the best gain, and why learning stopped.
    """

    policy: PolicyModel
    before: list[Floats]
    result: MetaResult


@dataclass(frozen=True)
class Lesson:
    """The settings with which a policy is learned.

    A field that is not listed below is the section of the recipe with the same name.

    Attributes:
        task: the task to learn from, as a string for ``load_task``.
        tokenizer: the section, with the name of the model's tokenizer, if it has one.
        kind: the architecture of the model that is pre-trained, such as "encoder".
        folder: the output folder.
    """

    learning: LearningSettings
    task: str
    corpus: CorpusSettings
    tokenizer: TokenizerSettings
    model: ModelSettings
    kind: Kind
    training: TrainingSettings
    finetune: FinetuneSettings
    folder: Path

    def learn(self) -> Measures:
        """Learn the policy and write it to ``folder``. An interrupted call resumes when repeated.

        Returns:
            A record with ``policy`` (the folder of the policy), ``method``, ``task``, the measures
            from learning, and the results of ``measures_of`` on the labelled texts of dev (key
            ``dev``) and of test (key ``held_out``).

        Raises:
            MaskwiseError: the corpus is a stream, no policy can be learned from the task, or a
                library that measures policies is not installed.
        """
        # A missing library would end the command after the policy was learned.
        annotators(POLICY_TAGGERS)
        # Reading a large text and searching it for the answers of a task may take minutes.
        self._say(f"reading {self.corpus.title} and the task {self.task}")
        tokenizer = self._tokenizer(self.learning.policy.pretrained or self.tokenizer.name)
        if self.learning.method == "supervised":
            return self._by_labels(tokenizer)
        return self._by_meta_gradient(tokenizer)

    def _say(self, line: str) -> None:
        """Log a line. Only the first rank does."""
        if rank_here() == 0:
            LOGGER.info("%s", line)

    @property
    def seed(self) -> int:
        """The seed for learning, which differs from the seed of the run that uses the policy.

        If the two seeds were equal, the policy would be evaluated on the same initial weights, row
        order and random draws with which it was learned.
        """
        return fold(self.training.seed, LEARNING)

    @cached_property
    def texts(self) -> list[str]:
        """All texts of the corpus.

        Some questions come without a text to mask. For such questions, the texts of the corpus are
        searched for the answers.
        """
        # A stream may be larger than memory.
        if self.corpus.stream:
            raise MaskwiseError(
                "learning a policy needs the whole corpus in memory", do="set corpus.stream: false"
            )
        return [document.text for document in self.corpus.documents()]

    def _by_labels(self, tokenizer: PreTrainedTokenizerFast) -> Measures:
        how = self.learning.supervised
        labels = labels_of(self.task, texts=self.texts)
        rows = len(labels.splits["train"])
        self._say(f"found labels in {rows:,} texts to learn from; learning from them")
        policy = self.new_policy(tokenizer, seed=self.seed)
        texts = labels.texts()
        before = word_weights(policy, texts)
        done, counts = learn_supervised(
            policy,
            labels.splits["train"],
            training=how.training.model_copy(update={"seed": self.seed}),
            dev_texts=labels.splits["dev"],
            folder=self.folder,
        )
        measures = {
            "left_out": dict(labels.counts + counts),
            "loss": done["loss"],
        }
        return self._keep(
            policy,
            measures | _measured(policy, labels),
            texts=texts,
            before=before,
        )

    def _by_meta_gradient(self, tokenizer: PreTrainedTokenizerFast) -> Measures:
        encoder = self.learning.policy.pretrained
        if encoder and self.tokenizer.name:
            model_tokenizer = self._tokenizer(self.tokenizer.name)
            # The meta-gradient uses the policy's scores of tokens as masks of the model's tokens.
            if other_ids(tokenizer.get_vocab(), model_tokenizer.get_vocab()):
                raise MaskwiseError(
                    "the meta-gradient needs the same tokens in policy and model, but their "
                    "tokenizers differ",
                    got=f"learning.policy.pretrained {encoder}, and {self.tokenizer.name}",
                    do="leave learning.policy.pretrained out",
                )
        texts = self.texts
        task = load_task(self.task)
        labels = None
        shown = texts
        # The meta-gradient needs no labels. If labels can be made from the answers of the task, the
        # labels are used only to evaluate the policy. Otherwise ``labels_of`` raises an error.
        with suppress(MaskwiseError):
            labels = labels_of(self.task, texts=texts)
            shown = labels.texts()
        log_unigram = _log_unigram(tokenizer, texts)
        sizes = {
            "length": min(self.corpus.length, self.learning.policy.length),
            "max_length": self.finetune.max_length,
        }

        # All tries have the same examples. Finding them may take minutes, so the first policy and
        # the first model are made before.
        @cache
        def examples(split: str) -> Examples:
            return Examples.of(task, split, tokenizer, texts=texts, **sizes)

        self._say(f"read {len(texts):,} texts; learning by meta-gradients")
        tries = self.learning.meta.tries
        results = []
        for number in range(tries):
            policy = self.new_policy(tokenizer, seed=self._seed_of(number))
            before = word_weights(policy, shown)
            losses = self._losses(tokenizer, task, log_unigram)
            result = self._try(number, policy, losses, examples("train"), examples("dev"))
            results.append(LearnedTry(policy, before, result))
        best = max(range(tries), key=lambda number: results[number].result.gain)
        if tries > 1 and rank_here() == 0:
            metrics = self.folder / f"try-{best}" / "metrics.jsonl"
            write_whole(self.folder / "metrics.jsonl", metrics.read_bytes())
        made = results[best]
        made.policy.cpu()
        figures = [each.result._asdict() for each in results]
        measures = {**figures[best], "tries": figures, "left_out": {}}
        without = examples("train").without
        if without:
            measures["left_out"]["train rows whose answers occur in no text"] = without
        if labels:
            measures |= _measured(made.policy, labels)
        return self._keep(
            made.policy,
            measures,
            texts=shown,
            before=made.before,
        )

    def _seed_of(self, number: int) -> int:
        """Return the seed of a try: of the policy's initial weights, and of the order of examples.

        The initial weights of the model are those of the first try.
        """
        return fold(self.seed, number) if number else self.seed

    def _losses(
        self, tokenizer: PreTrainedTokenizerFast, task: Task, log_unigram: torch.Tensor
    ) -> Losses:
        """Return a new model with its two losses."""
        # Gradients pass through all weights, and only a training of the run adds an adapter.
        whole = self.model.model_copy(update={"adapter": None})
        model = model_from(
            whole,
            tokenizer,
            self.corpus.length,
            kind=self.kind,
            seed=self.seed,
            log_unigram=log_unigram,
        )
        return losses_of(model, task, tokenizer, seed=self.seed)

    def _try(
        self,
        number: int,
        policy: PolicyModel,
        losses: Losses,
        examples: Examples,
        dev: Examples,
    ) -> MetaResult:
        """Learn the policy of one try. The policy and the model are changed in place."""
        tries = self.learning.meta.tries
        folder = self.folder
        title = "learning a policy"
        if tries > 1:
            folder = self.folder / f"try-{number}"
            title += f" ({number + 1} of {tries})"
        return learn_policy(
            policy,
            losses,
            examples,
            dev,
            self.learning.meta.model_copy(update={"seed": self._seed_of(number)}),
            self.training,
            folder=folder,
            title=title,
        )

    def _keep(
        self,
        policy: PolicyModel,
        measures: Measures,
        *,
        texts: Sequence[str],
        before: Sequence[Floats],
    ) -> Measures:
        """On rank 0, write the policy, its card and ``shown.json``.

        The training states stay in the folder. The caller removes them when it has written the
        result.

        Args:
            texts: the texts on which the policy's weights are summarised.
            before: for each of the first texts, the weights (W,) of its words before learning.

        Returns:
            The record for ``learn``.
        """
        result = {
            "policy": str(self.folder / "policy"),
            "method": self.learning.method,
            "task": self.task,
            **measures,
        }
        if rank_here():
            return result
        settings = self.learning.policy
        choices = {
            "task": self.task,
            "method": self.learning.method,
            "corpus": self.corpus.title,
            "seed": self.training.seed,
            "encoder": settings.pretrained or settings.architecture,
            "head": policy.config.head,
            "length": policy.config.length,
        }
        figures = dict(measures.get("held_out", {}))
        if self.learning.method == "meta":
            choices["tries"] = len(measures["tries"])
            figures = {GAIN: measures["gain"], **figures}
        shown = show(policy, texts, before)
        front = front_matter(
            settings.pretrained,
            self.corpus.sources,
            library_name="maskwise",
            tags=["masking-policy"],
        )
        policy.card = policy_card(choices, figures, shown, front=front)
        write_folder(self.folder / "policy", policy.save_pretrained)
        write_json(self.folder / "shown.json", finite(shown))
        return result

    # Parts built from the settings
    # ---------------------------------------------------------------------------------------

    def new_policy(self, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> PolicyModel:
        """Create an untrained policy."""
        settings = self.learning.policy.model_dump() | {"head": self.learning.head}
        return PolicyModel.new(tokenizer, seed=seed, **settings)

    def _tokenizer(self, name: str | None) -> PreTrainedTokenizerFast:
        """Load the tokenizer ``name``. If ``name`` is None, train a tokenizer on the corpus.

        With several ranks, only rank 0 trains, and the other ranks load its tokenizer.
        """
        chosen = self.tokenizer.model_copy(update={"name": name})
        if name or ranks_here() == 1:
            return chosen.tokenizer(self.corpus.documents())
        shared = self.folder / SHARED_TOKENIZER
        if rank_here() == 0 and not shared.is_dir():
            write_folder(shared, chosen.tokenizer(self.corpus.documents()).save_pretrained)
        # Other ranks wait until rank 0 has written the file.
        require_file(shared / "tokenizer.json")
        return load_tokenizer(str(shared), needs_mask=False, needs_words=False)


def _log_unigram(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> torch.Tensor:
    """Return (V,) the log-frequency of each token, with which a new model's output bias starts."""
    documents = map(Document, map(str, range(len(texts))), texts)
    counts = torch.zeros(len(tokenizer), dtype=torch.int64)
    for tokens in tokenise(documents, tokenizer):
        ids = torch.from_numpy(tokens.columns["input_ids"])
        counts += torch.bincount(ids, minlength=len(tokenizer))
    return log_frequencies(counts)


def _measured(policy: PolicyModel, labels: Labels) -> Measures:
    """Return the results of ``measures_of`` on the labelled texts of dev and of test, if any."""
    measures = {}
    for name, split in (("dev", "dev"), ("held_out", "test")):
        marked = labels.marked(split)
        if marked:
            measures[name] = measures_of(policy, marked)
    return measures
