"""How many tokens to draft: fewer when the target is busy or drafts are rarely accepted."""

from __future__ import annotations


class DraftLengthPolicy:
    """Chooses the k that makes the most tokens per second, by a model of time and acceptance.

    A long draft is nearly free for a small batch, whose target pass waits for weights, and costs
    throughput in a large one, where each row that is verified takes time of its own. The model: in
    units of a target pass over few rows, a step with B requests and k drafts takes
    ``1 + draft_cost + row_cost * B * (k + 1)``, and emits ``1 + a1 + a1 a2 + ...`` tokens per
    request, where ai is the share of position i's drafts that are accepted once all before are.
    Parallel drafting makes `draft_cost` the same for all k.

    Shares are of recent verifications. What was seen of a position is averaged with the share of
    the position before it, as if that had been seen `PRIOR` times more, so that positions that were
    not drafted lately are judged by those that were.
    """

    PRIOR = 8.0
    FIRST_SHARE = 0.7  # of position 1, before anything was seen

    def __init__(
        self,
        max_k: int,
        *,
        row_cost: float = 1 / 256,
        draft_cost: float = 0.1,
        half_life: float = 256.0,
    ) -> None:
        """Start without experience.

        Args:
            max_k: Most drafts, the drafter's K.
            row_cost: Time of one more row in a target pass, over that of a pass of one row. Take
                it from two measurements of the target, (t(R) / t(1) - 1) / R: the default stands
                for one that takes twice as long with 256 rows, and was not measured.
            draft_cost: Time of a drafter pass over that of a target pass of one row; likewise.
            half_life: Verifications of a request after which one counts half.

        Raises:
            ValueError: An argument is out of range.
        """
        for name, value, least in (
            ("max_k", max_k, 1), ("row_cost", row_cost, 0), ("draft_cost", draft_cost, 0),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"DraftLengthPolicy: {name} must be at least {least}, got {value}")
        if not half_life > 0:
            raise ValueError(f"DraftLengthPolicy: half_life must be above 0, got {half_life}")
        self.max_k, self.row_cost, self.draft_cost = max_k, row_cost, draft_cost
        self._decay = 0.5 ** (1 / half_life)
        self._reached = [0.0] * max_k  # verifications in which all before the position were right
        self._accepted = [0.0] * max_k

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """Take in the verification of one request.

        Args:
            num_drafts: Drafts verified; 0 teaches nothing.
            num_accepted: Leading drafts that were accepted.

        Raises:
            ValueError: More were accepted than drafted, or more drafted than `max_k`.
        """
        if not 0 <= num_accepted <= num_drafts <= self.max_k:
            raise ValueError(
                f"DraftLengthPolicy: expected 0 <= accepted <= drafts <= {self.max_k}, got "
                f"{num_accepted} and {num_drafts}"
            )
        if num_drafts == 0:
            return
        for i in range(self.max_k):
            self._reached[i] *= self._decay
            self._accepted[i] *= self._decay
        for i in range(min(num_accepted + 1, num_drafts)):
            self._reached[i] += 1
            self._accepted[i] += num_accepted > i

    def shares(self) -> list[float]:
        """The share of each position's drafts that are accepted, once all before are."""
        shares, share = [], self.FIRST_SHARE
        for reached, accepted in zip(self._reached, self._accepted, strict=True):
            share = (accepted + self.PRIOR * share) / (reached + self.PRIOR)
            shares.append(share)
        return shares

    def choose(self, batch_size: int) -> int:
        """The k for a batch of so many requests, 1 to `max_k`; of equals the smallest."""
        best, best_rate = 1, 0.0
        tokens, survives = 1.0, 1.0
        for k, share in enumerate(self.shares(), start=1):
            survives *= share
            tokens += survives
            rate = tokens / (1 + self.draft_cost + self.row_cost * batch_size * (k + 1))
            if rate > best_rate:
                best, best_rate = k, rate
        return best
