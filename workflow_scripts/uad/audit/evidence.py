"""Who is wrong where two artifacts contradict each other: the one that more others contradict."""

from __future__ import annotations

from collections import defaultdict

from uad.audit.tree import MAKE_AGAIN, Audited


class Evidence:
    """Collects agreements and contradictions between files and what was made from them.

    A source (a split, a slice store) is read by many. If several of them contradict it in one
    point, such as one subject, and fewer agree with it, the source is named; otherwise those
    that contradict it are.
    """

    def __init__(self, tree: Audited) -> None:
        self._tree = tree
        self._agree: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._contradict: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        #: Sources that were computed again, and hence are not in doubt.
        self.proven: set[str] = set()

    def weigh(self, source: str, consumer: str, point: str, agrees: bool, why: str) -> None:
        """Note what a file says about the one that it was made from.

        Args:
            source: key of the file that was read.
            consumer: key of the file that was made from it.
            point: what they agree on or not, for example a subject.
            agrees: whether they do.
            why: the contradiction in a sentence.
        """
        self._tree.checks["contents against their sources"] += 1
        if agrees:
            self._agree[source, point].add(consumer)
        else:
            self._contradict[source, point][consumer] = why

    def judge(self) -> None:
        """Report a finding for each contradiction."""
        blamed = set()
        for (source, point), consumers in self._contradict.items():
            doubted = len(consumers) > max(1, len(self._agree[source, point]))
            if doubted and source not in self.proven:
                blamed.add(source)
                others = ", ".join(sorted(consumers)[:3])
                self._tree.findings.add(
                    source,
                    "contradicted",
                    f"{len(consumers)} files that were made from it contradict it on {point} "
                    f"({others}): {min(consumers.values())}",
                    MAKE_AGAIN,
                )
        for (source, _), consumers in self._contradict.items():
            for consumer, why in consumers.items() if source not in blamed else ():
                self._tree.findings.add(consumer, "contradicts its source", why, MAKE_AGAIN)
