"""The Up-Down captioner: one recurrent cell computes the attention to the regions, a second one predicts the next word
(Anderson et al. 2018, section 3.1; Up-Down-Captioner, scripts/create_caption_lstm.py)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as normalize_weight
from torch.nn.utils.parametrize import cached

from bua.tasks.layers import at_least_float32, in_float32, masked_softmax

GATES = {"lstm": 4, "gru": 3}


class SpecialWords(NamedTuple):
    """Ids of the special words; the defaults are those of Anderson's code.

    Attributes:
        begin: The input of the first step.
        end: The prediction that ends a caption. It may be the same as ``begin``, which is never predicted.
        unk: Stands for words that are not in the vocabulary; None where the vocabulary has no such word.
        pad: The padding after the end; it may be the same as ``end``.
    """

    begin: int = 0
    end: int = 0
    unk: int | None = 1
    pad: int = 0


class EncodedRegions(NamedTuple):
    """The part of the computation for B images that does not change from step to step.

    Attributes:
        regions: [B, n, D], the features that the attention averages.
        keys: [B, n, A], the regions' part of the attention's hidden layer.
        gates: [B, 1, G], the mean feature's part of the gates of the attention cell.
        mask: [B, 1, n] bool, false for padding.
    """

    regions: Tensor
    keys: Tensor
    gates: Tensor
    mask: Tensor


class State(NamedTuple):
    """The state of K unfinished captions of each of B images.

    Attributes:
        encoded: The regions of the B images.
        attention, language: States of the two cells: the output [B, K, hidden_dim], and for an LSTM its memory.
    """

    encoded: EncodedRegions
    attention: tuple[Tensor, ...]
    language: tuple[Tensor, ...]

    def select(self, captions: Tensor) -> "State":
        """Returns the state in which caption k of image b is caption ``captions[b, k]`` of this state; ``captions`` is
        [B, K'] int64."""
        cells = [
            tuple(part.gather(1, captions.unsqueeze(-1).expand(-1, -1, part.shape[2])) for part in cell)
            for cell in (self.attention, self.language)
        ]
        return State(self.encoded, *cells)


class UpDownCaptioner(nn.Module):
    """Describes an image word by word, with new attention to the image's regions for each word.

    The defaults are the original model: no dropout, no projection, no biases in the attention. Its LSTMs have one bias
    per gate, where those of torch have two.

    Args:
        num_words: V, size of the vocabulary, special words included.
        feature_dim: D, the feature dimension of the regions.
        embedding_dim: Dimension of a word's vector.
        hidden_dim: Dimension of both recurrent cells.
        attention_dim: A, dimension of the attention's hidden layer.
        cell: "lstm", or "gru" as in ChanningPing's variant.
        projection_dim: Output dimension of a linear layer that features pass through first, followed by ReLU and
            dropout; the mean feature has such a layer of its own, and word vectors pass through ReLU and dropout. These
            layers are those of ruotianluo's and X-modaler's versions. None leaves all of them out.
        dropout: Dropout probability of the projections, and of the layer that words are predicted from.
        attention_dropout: Dropout probability of the attention's hidden layer.
        attention_activation: "tanh" or "relu".
        attention_bias: Whether the three linear layers of the attention have biases.
        weight_norm: Whether the linear layers of the attention and of the prediction have weight normalisation with one
            norm per row, as in the GRU variant.
        initial_std: Standard deviation of the normal distribution that all weights are drawn from; biases are 0, and 1
            at the forget gates of LSTMs. None keeps torch's initial values, as all ports do.
        special: Ids of the special words.

    Raises:
        ValueError: An unknown ``cell`` or ``attention_activation``.
    """

    def __init__(
        self,
        num_words: int,
        *,
        feature_dim: int = 2048,
        embedding_dim: int = 1000,
        hidden_dim: int = 1000,
        attention_dim: int = 512,
        cell: str = "lstm",
        projection_dim: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        attention_activation: str = "tanh",
        attention_bias: bool = False,
        weight_norm: bool = False,
        initial_std: float | None = 0.01,
        special: SpecialWords = SpecialWords(),  # noqa: B008 - immutable
    ):
        super().__init__()
        if cell not in GATES:
            raise ValueError(f"cell {cell!r}: use one of {', '.join(GATES)}")
        if attention_activation not in ("tanh", "relu"):
            raise ValueError(f"attention_activation {attention_activation!r}: use tanh or relu")
        self.special, self.num_words, self.hidden_dim = special, num_words, hidden_dim
        self.projected = projection_dim is not None
        self.activation = getattr(torch, attention_activation)
        self.dropout, self.attention_dropout = nn.Dropout(dropout), nn.Dropout(attention_dropout)

        dim = projection_dim or feature_dim
        if self.projected:
            self.project_regions = nn.Linear(feature_dim, dim)
            self.project_mean = nn.Linear(feature_dim, dim)
        self.words = nn.Embedding(num_words, embedding_dim)
        self.attention_cell = Cell(cell, hidden_dim, word=embedding_dim, mean=dim, language=hidden_dim)
        self.region_key = nn.Linear(dim, attention_dim, bias=attention_bias)
        self.query = nn.Linear(hidden_dim, attention_dim, bias=attention_bias)
        self.relevance = nn.Linear(attention_dim, 1, bias=attention_bias)
        self.language_cell = Cell(cell, hidden_dim, attention=hidden_dim, attended=dim)
        self.predict = nn.Linear(hidden_dim, num_words)

        nn.init.zeros_(self.predict.bias)
        if initial_std is not None:
            self._initialize(initial_std)
        if weight_norm:
            for layer in (self.region_key, self.query, self.relevance, self.predict):
                normalize_weight(layer)

    def forward(self, features: Tensor, mask: Tensor, tokens: Tensor, *, sampling_probability: float = 0.0) -> Tensor:
        """Predicts the next word after each word of given captions.

        Args:
            features: [B, n, D] float32; finite, also in padding.
            mask: [B, n] bool, false for padding. An image may have no region.
            tokens: [B, L] int64, the input of the steps: ``special.begin``, then the words. Or [B, S, L] for S captions
                of each image.
            sampling_probability: Probability that a step from the second on reads a word drawn from the prediction of
                the step before, instead of the given word (scheduled sampling; Bengio et al. 2015).

        Returns:
            Logits [B, L, V] or [B, S, L, V] of the next words; float32, in autocast too.
        """
        captions = tokens if tokens.dim() == 3 else tokens.unsqueeze(1)
        # Normalised weights are computed once, not at every step.
        with cached():
            state = self.start(features, mask, captions.shape[1])
            if sampling_probability > 0:
                logits = self._sample_inputs(captions, state, sampling_probability)
            else:
                outputs = []
                for gates in self._read(captions).unbind(2):
                    _, state = self._advance(gates, state)
                    outputs.append(state.language[0])
                logits = self._predict(torch.stack(outputs, dim=2))
        return logits if tokens.dim() == 3 else logits.squeeze(1)

    def start(self, features: Tensor, mask: Tensor, captions: int = 1) -> State:
        """Returns the state before the first word of K = ``captions`` captions of each image; ``features`` and ``mask``
        are those of ``forward``."""
        mean = (features * mask.unsqueeze(-1)).sum(dim=1, keepdim=True)
        mean = mean / mask.sum(dim=1).clamp(min=1).view(-1, 1, 1)
        if self.projected:
            features = self.dropout(F.relu(self.project_regions(features)))
            mean = self.dropout(F.relu(self.project_mean(mean)))
        gates = self.attention_cell.read(mean=mean)
        encoded = EncodedRegions(features, self.region_key(features), gates, mask.unsqueeze(1))
        zeros = gates.new_zeros(len(features), captions, self.hidden_dim)
        cell = (zeros,) * self.attention_cell.parts
        return State(encoded, cell, cell)

    def step(self, word: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Reads a word and predicts the next one.

        Args:
            word: [B, K] int64, ``special.begin`` in the first step.
            state: The state from ``start`` or from the step before.

        Returns:
            Logits [B, K, V]; attention [B, K, n], which sums to 1, or is 0 for an image without regions; and the new
            state. All are float32, in autocast too.
        """
        attention, state = self._advance(self._read(word), state)
        return self._predict(state.language[0]), attention, state

    def _read(self, tokens: Tensor) -> Tensor:
        """Returns the words' part of the gates of the attention cell."""
        vectors = self.words(tokens)
        return self.attention_cell.read(word=self.dropout(F.relu(vectors)) if self.projected else vectors)

    def _advance(self, word_gates: Tensor, state: State) -> tuple[Tensor, State]:
        encoded, cell = state.encoded, self.attention_cell
        gates = word_gates + encoded.gates + cell.read(language=state.language[0])
        attention_state = cell(gates, state.attention)
        hidden = attention_state[0]

        joint = self.activation(encoded.keys.unsqueeze(1) + self.query(hidden).unsqueeze(2))
        relevance = in_float32(self.relevance, self.attention_dropout(joint)).squeeze(-1)
        attention = masked_softmax(relevance, encoded.mask)
        attended = torch.bmm(attention, encoded.regions)

        gates = self.language_cell.read(attention=hidden, attended=attended)
        language_state = self.language_cell(gates, state.language)
        return attention, State(encoded, attention_state, language_state)

    def _predict(self, hidden: Tensor) -> Tensor:
        return in_float32(self.predict, self.dropout(hidden))

    def _sample_inputs(self, captions: Tensor, state: State, probability: float) -> Tensor:
        logits: list[Tensor] = []
        for words in captions.unbind(2):
            if logits:
                # The check of the arguments would wait for a GPU.
                drawn = torch.distributions.Categorical(logits=logits[-1].detach(), validate_args=False).sample()
                words = torch.where(torch.rand(words.shape, device=words.device) < probability, drawn, words)
            predicted, _, state = self.step(words, state)
            logits.append(predicted)
        return torch.stack(logits, dim=2)

    @torch.no_grad()
    def _initialize(self, std: float) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
            else:
                parameter.zero_()
        for cell in (self.attention_cell, self.language_cell):
            if cell.kind == "lstm":
                cell.bias.view(4, -1)[1] = 1


class Cell(nn.Module):
    """An LSTM or GRU cell whose input is given in parts, so that the parts that do not change from step to step are
    computed once.

    The gates are in torch's order: input, forget, cell, output; or reset, update, new.

    Args:
        kind: "lstm" or "gru".
        hidden_dim: H, dimension of the state.
        inputs: Dimensions of the parts of the input, by name.
    """

    def __init__(self, kind: str, hidden_dim: int, **inputs: int):
        super().__init__()
        self.kind, self.parts = kind, 2 if kind == "lstm" else 1
        gates = GATES[kind] * hidden_dim
        self.inputs = nn.ModuleDict({name: nn.Linear(size, gates, bias=False) for name, size in inputs.items()})
        # A GRU multiplies a part of this layer's output, with its bias, by a gate. In an LSTM the bias would only be
        # added to ``self.bias``.
        self.recurrent = nn.Linear(hidden_dim, gates, bias=kind == "gru")
        self.bias = nn.Parameter(torch.empty(gates))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_dim**-0.5), hidden_dim**-0.5)

    def read(self, **inputs: Tensor) -> Tensor:
        """Maps some parts of the input, each [..., size], to their part of the gates, [..., G]."""
        first, *others = (at_least_float32(self.inputs[name](value)) for name, value in inputs.items())
        return sum(others, first)

    def forward(self, gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps gates [..., G], the sum over all parts of the input, and a state to the new state."""
        gates, recurrent = gates + self.bias, at_least_float32(self.recurrent(state[0]))
        if self.kind == "lstm":
            enter, forget, content, leave = (gates + recurrent).chunk(4, dim=-1)
            memory = forget.sigmoid() * state[1] + enter.sigmoid() * content.tanh()
            return leave.sigmoid() * memory.tanh(), memory
        reset, update, new = gates.chunk(3, dim=-1)
        old_reset, old_update, old_new = recurrent.chunk(3, dim=-1)
        new = torch.tanh(new + (reset + old_reset).sigmoid() * old_new)
        return (torch.lerp(new, state[0], (update + old_update).sigmoid()),)


def caption_loss(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    unk: int | None = 1,
    weights: Tensor | None = None,
    scale: float = 20.0,
) -> Tensor:
    """Computes the cross-entropy of captions, as the original's ``SoftmaxWithLoss``.

    The loss is ``scale`` times the mean over all words of the batch that count, so that a long caption has more weight
    than a short one. The original's scale is 20, its number of steps. With SGD, the original's learning rate and its
    gradient clipping at 10 go with this scale.

    Args:
        logits: [..., L, V].
        targets: [..., L] int64, the next words, the end included.
        mask: [..., L] bool, false after the end.
        unk: Id of the unknown word, which does not count as a target; None where the vocabulary has no such word.
        weights: [...], weights of whole captions. The mean is over the number of words, whatever the weights.
        scale: Factor of the loss.

    Returns:
        A scalar, float32; 0 where no word counts.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)
    counts = mask if unk is None else mask & (targets != unk)
    if weights is not None:
        losses = losses * weights.unsqueeze(-1)
    return scale * losses.masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)
