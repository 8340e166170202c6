"""The Up-Down captioner: one recurrent cell decides where to look, another what to say (Anderson et al. 2018, section
3.1; Up-Down-Captioner, scripts/create_caption_lstm.py)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as normalize_weight
from torch.nn.utils.parametrize import cached

from bua.tasks.layers import at_least_float32, masked_softmax

GATES = {"lstm": 4, "gru": 3}


class SpecialWords(NamedTuple):
    """Ids of the words that are no words; the defaults are Anderson's.

    Attributes:
        begin: what the first step reads.
        end: what ends a caption; may be ``begin``, which is never predicted as such.
        unk: stands for words outside of the vocabulary; None where there are none.
        pad: after the end; may be ``end``.
    """

    begin: int = 0
    end: int = 0
    unk: int | None = 1
    pad: int = 0


class EncodedRegions(NamedTuple):
    """What the decoder needs of B images, computed once.

    Attributes:
        regions: [B, n, D], what is attended to.
        keys: [B, n, A], the regions' part of the attention.
        gates: [B, 1, G], the mean feature's part of the attention cell's gates.
        mask: [B, 1, n] bool.
    """

    regions: Tensor
    keys: Tensor
    gates: Tensor
    mask: Tensor


class State(NamedTuple):
    """Where K captions of each of B images are.

    Attributes:
        encoded: the regions of the B images.
        attention, language: of the two cells; first the output [B, K, hidden_dim], then, for an LSTM, its memory.
    """

    encoded: EncodedRegions
    attention: tuple[Tensor, ...]
    language: tuple[Tensor, ...]

    def select(self, captions: Tensor) -> "State":
        """The state whose caption k of image b is what ``captions[b, k]``, int64 [B, K'], was here."""
        cells = [
            tuple(part.gather(1, captions.unsqueeze(-1).expand(-1, -1, part.shape[2])) for part in cell)
            for cell in (self.attention, self.language)
        ]
        return State(self.encoded, *cells)


class UpDownCaptioner(nn.Module):
    """Says what is on an image, a word at a time, attending to its regions anew for each word.

    The defaults are the original's model: no dropout, no projection, no biases in the attention. Its LSTMs have one
    bias a gate where torch's have two.

    Args:
        num_words: V, size of the vocabulary, special words included.
        feature_dim: D of the region features.
        embedding_dim: of a word.
        hidden_dim: of both recurrent cells.
        attention_dim: A, of the attention's hidden layer.
        cell: "lstm", or "gru" as in ChanningPing's variant.
        projection_dim: features go through a linear map to so many numbers, ReLU and dropout first, the mean feature
            through one of its own, and word vectors through ReLU and dropout, as in ruotianluo's and X-modaler's
            versions; None for features and words as they are.
        dropout: of the projections, and of what the word is predicted from.
        attention_dropout: of the attention's hidden layer.
        attention_activation: "tanh" or "relu".
        attention_bias: whether the attention's three maps have biases.
        weight_norm: lengths of their own for the rows of the attention's maps and the prediction's, as in the GRU
            variant.
        initial_std: all weights are drawn from a normal distribution with this deviation, with biases of 0, and 1 at
            the LSTMs' forget gates; None for what torch does with such layers, as in all ports.
        special: ids of the special words.

    Raises:
        ValueError: an unknown ``cell`` or ``attention_activation``.
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
        """What follows each word of captions that are known.

        Args:
            features: [B, n, D] float32; finite, also in padding.
            mask: [B, n] bool, false for padding. An image may have no box at all.
            tokens: [B, L] int64, what the steps read: ``special.begin``, then the words. Or [B, S, L] for S captions
                of each image.
            sampling_probability: that a step, from the second on, reads a word drawn from what the one before
                predicts instead (scheduled sampling; Bengio et al. 2015).

        Returns:
            Logits [B, L, V] or [B, S, L, V] of the words that follow; float32, in autocast too.
        """
        captions = tokens if tokens.dim() == 3 else tokens.unsqueeze(1)
        # Weights with lengths of their own are put together once, not at every step.
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
        """The state before the first word of K ``captions`` of each image; ``features`` and ``mask`` as above."""
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
        """Reads a word and predicts the next.

        Args:
            word: [B, K] int64, ``special.begin`` at first.
            state: from ``start`` or the step before.

        Returns:
            Logits [B, K, V]; attention [B, K, n], which sums to 1, or is 0 for an image without boxes; the new
            state. All float32, in autocast too.
        """
        attention, state = self._advance(self._read(word), state)
        return self._predict(state.language[0]), attention, state

    def _read(self, tokens: Tensor) -> Tensor:
        """Words' part of the attention cell's gates."""
        vectors = self.words(tokens)
        return self.attention_cell.read(word=self.dropout(F.relu(vectors)) if self.projected else vectors)

    def _advance(self, word_gates: Tensor, state: State) -> tuple[Tensor, State]:
        encoded, cell = state.encoded, self.attention_cell
        gates = word_gates + encoded.gates + cell.read(language=state.language[0])
        attention_state = cell(gates, state.attention)
        hidden = attention_state[0]

        joint = self.activation(encoded.keys.unsqueeze(1) + self.query(hidden).unsqueeze(2))
        relevance = self.relevance(self.attention_dropout(joint)).squeeze(-1)
        attention = masked_softmax(at_least_float32(relevance), encoded.mask)
        attended = torch.bmm(attention, encoded.regions)

        gates = self.language_cell.read(attention=hidden, attended=attended)
        language_state = self.language_cell(gates, state.language)
        return attention, State(encoded, attention_state, language_state)

    def _predict(self, hidden: Tensor) -> Tensor:
        return at_least_float32(self.predict(self.dropout(hidden)))

    def _sample_inputs(self, captions: Tensor, state: State, probability: float) -> Tensor:
        logits = []
        for words in captions.unbind(2):
            if logits:
                drawn = torch.distributions.Categorical(logits=logits[-1].detach()).sample()
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
    """An LSTM or GRU cell whose input comes in parts, so that what does not change from step to step is computed once.

    Gates are in torch's order: input, forget, cell, output; or reset, update, new.

    Args:
        kind: "lstm" or "gru".
        hidden_dim: H.
        inputs: sizes of the parts of the input, by name.
    """

    def __init__(self, kind: str, hidden_dim: int, **inputs: int):
        super().__init__()
        self.kind, self.parts = kind, 2 if kind == "lstm" else 1
        gates = GATES[kind] * hidden_dim
        self.inputs = nn.ModuleDict({name: nn.Linear(size, gates, bias=False) for name, size in inputs.items()})
        # A GRU multiplies a part of this by a gate, bias and all; an LSTM's would only add to the other bias.
        self.recurrent = nn.Linear(hidden_dim, gates, bias=kind == "gru")
        self.bias = nn.Parameter(torch.empty(gates))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_dim**-0.5), hidden_dim**-0.5)

    def read(self, **inputs: Tensor) -> Tensor:
        """Some parts of the input, [..., size], to their part of the gates, [..., G]."""
        return sum(at_least_float32(self.inputs[name](value)) for name, value in inputs.items())

    def forward(self, gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gates [..., G], from all parts of the input, and a state to the new state."""
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
    """Cross-entropy of captions, as the original's ``SoftmaxWithLoss``.

    ``scale`` times the mean over all words of the batch that count, so that a long caption has more weight than a
    short one. The original's scale is 20, its number of steps; with SGD it belongs to the learning rate and to the
    gradients' limit of 10.

    Args:
        logits: [..., L, V].
        targets: [..., L] int64, what follows each word, the end included.
        mask: [..., L] bool, false after the end.
        unk: targets of this id do not count; None where there is no such word.
        weights: of whole captions, [...]; the mean is still over the number of words.
        scale: see above.

    Returns:
        A scalar, float32; 0 where nothing counts.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)
    counts = mask if unk is None else mask & (targets != unk)
    if weights is not None:
        losses = losses * weights.unsqueeze(-1)
    return scale * losses.masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)
