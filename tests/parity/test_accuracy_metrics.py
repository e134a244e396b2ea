"""Exact match and F1 of answers, beside transformers' SQuAD metrics."""

from hypothesis import given
from hypothesis import strategies as st

from erniem_export.gate.accuracy import figures

# What SQuAD's script reads as we do: in other alphabets it leaves punctuation where it is.
WORDS = st.sampled_from(["the", "a", "An", "Ann", "Lee", "lee's", "3.5", "$5", "x-y", "Straße", "café", "...", "Рим"])
TEXT = st.lists(WORDS, max_size=5).map(" ".join)


@given(st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_figures_are_squads(pairs):
    from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

    found = figures("exact_match", [answer for answer, _ in pairs], [right for _, right in pairs])
    for name, score in (("exact_match", compute_exact), ("f1", compute_f1)):
        best = [max(score(right, answer) for right in rights) for answer, rights in pairs]
        assert abs(found[name] - 100 * sum(best) / len(best)) < 1e-9
