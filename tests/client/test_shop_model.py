"""Any history of changes, swaps, exports, rebuilds and kills, beside a dictionary that knows all.

The dictionary says which products there are; the shop must find exactly those: by words, by
meaning, page by page, in every release that is open. One product is never deleted, because a
catalog must not be empty.
"""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from words_shop import WordsShop, export, ids, killed, product, write_shop_region

from client.service.messages import DeleteRequest, SearchRequest, UpsertRequest
from shared.retrieval.manifest import open_index_folder

IDS = st.sampled_from("abcde")
WORDS = st.sampled_from(["boot", "shoe", "sock"])
ALWAYS = "z"


class Changed(NamedTuple):
    """What the service was told last of a product; no title: that it is gone."""

    title: str | None
    at: datetime


class Served(RuleBasedStateMachine):
    """A retailer with an export of its own, and a service that is changed, moved and killed."""

    root = Path()

    @initialize()
    def begin(self) -> None:
        self.runs = 0
        shutil.rmtree(Served.root, ignore_errors=True)
        self.exported: dict[str, tuple[str, datetime | None]] = {ALWAYS: (title("boot", "z"), None)}
        self.told: dict[str, Changed] = {}
        self.releases = [1, 2]
        folder = write_shop_region(Served.root / "0", self._rows())
        self.open_shop = WordsShop(folder, 1, 2)

    def teardown(self) -> None:
        if hasattr(self, "open_shop"):
            self.open_shop.close()

    def _rows(self) -> list[dict[str, Any]]:
        pairs = self.exported.items()
        return [{"product_id": one, "title": t, "updated_at": at} for one, (t, at) in pairs]

    @property
    def wanted(self) -> dict[str, str]:
        """Title of every product that there is: what the service was told, unless it is older."""
        found = {one: text for one, (text, _) in self.exported.items()}
        for one, (text, at) in self.told.items():
            stamped = self.exported.get(one, ("", None))[1]
            if stamped is not None and stamped > at:
                continue
            found.pop(one, None)
            if text is not None:
                found[one] = text
        return found

    # -- what happens --------------------------------------------------------------------------

    @rule(chosen=st.lists(IDS, min_size=1, max_size=3), word=WORDS)
    def upserts(self, chosen: list[str], word: str) -> None:
        products = tuple(product(one, title(word, one)) for one in chosen)
        self.open_shop.shop.upsert(UpsertRequest(products=products))
        self.told |= {one: Changed(title(word, one), datetime.now(UTC)) for one in chosen}

    @rule(chosen=st.lists(IDS, min_size=1, max_size=3))
    def deletes(self, chosen: list[str]) -> None:
        there = self.wanted.keys() & set(chosen)
        answer = self.open_shop.shop.delete(DeleteRequest(product_ids=tuple(chosen)))
        assert answer.changed == len(there)
        self.told |= {one: Changed(None, datetime.now(UTC)) for one in chosen}

    @rule(chosen=st.lists(IDS, unique=True, max_size=4), word=WORDS, stamped=st.booleans())
    def exports(self, chosen: list[str], word: str, stamped: bool) -> None:
        """The whole catalog as the retailer has it: newer than every change, or of no known age."""
        at = datetime.now(UTC) if stamped else None
        self.exported = {one: (title(word, one), at) for one in (ALWAYS, *chosen)}
        export(self.open_shop.folder, self._rows())
        self._reopen(rebuild=False)

    @rule()
    def exports_what_is_served(self) -> None:
        """The catalog catches up."""
        self.exported = {one: (text, None) for one, text in self.wanted.items()}
        export(self.open_shop.folder, self._rows())
        self._reopen(rebuild=False)

    @rule()
    def rebuilds(self) -> None:
        self._reopen(rebuild=True)

    @rule()
    def swaps(self) -> None:
        self.releases.reverse()
        self._reopen(rebuild=False)

    @rule(in_use=st.sampled_from([[1], [2], [2, 1]]))
    def is_killed_and_starts_again(self, in_use: list[int]) -> None:
        """A copy of the disk as it is, nothing closed before; its index is still the old one."""
        self.runs += 1
        copy = killed(self.open_shop.folder, Served.root / str(self.runs))
        self.open_shop.close()
        indexes, self.releases = self.open_shop.indexes, in_use
        self.open_shop = WordsShop(copy)
        self.open_shop.indexes = {
            release: open_index_folder(
                copy / "state" / "indexes" / former.folder.name,
                expected_digest=former.manifest.encoder_digest,
            )
            for release, former in indexes.items()
        }
        self._reopen(rebuild=False)

    def _reopen(self, *, rebuild: bool) -> None:
        self.open_shop.use(*self.releases, rebuild=rebuild)
        for one, (text, at) in list(self.told.items()):
            exported, stamped = self.exported.get(one, (None, None))
            newer = stamped is not None and stamped > at
            if text is not None and exported is not None and (newer or exported == text):
                del self.told[one]  # the catalog says it itself from now on

    # -- what must hold ------------------------------------------------------------------------

    @invariant()
    def what_is_found_is_exactly_what_there_is(self) -> None:
        if not hasattr(self, "open_shop"):
            return
        wanted, search = self.wanted, self.open_shop.shop.search
        assert self.open_shop.shop.info().num_products == len(wanted)
        for release in self.releases:
            every = search(SearchRequest(query="boot", ranker="dense", k=100, release=release))
            assert {hit.product_id: hit.title for hit in every.hits} == wanted
            assert len(every.hits) == len(wanted)
            boots = {one for one, text in wanted.items() if text.startswith("boot")}
            by_word = SearchRequest(query="boot", ranker="lexical", k=100, release=release)
            found = search(by_word)
            assert set(ids(found)) == (boots or wanted.keys()), "popular ones where none has it"
            assert bool(found.fallback) != bool(boots)

    @invariant()
    def pages_are_the_whole(self) -> None:
        if not hasattr(self, "open_shop"):
            return
        request, seen = SearchRequest(query="shoe c", k=2), list[str]()
        page = self.open_shop.shop.search(request)
        while True:
            seen += ids(page)
            if page.next_cursor is None:
                break
            page = self.open_shop.shop.search(
                request.model_copy(update={"cursor": page.next_cursor})
            )
        assert sorted(seen) == sorted(self.wanted)


def title(word: str, product_id: str) -> str:
    """No two products have one, or they would be shown as variants of one another."""
    return f"{word} no{product_id}"


def test_any_history_is_what_the_dictionary_says(tmp_path: Path) -> None:
    Served.root = tmp_path / "served"
    bounded = settings(
        max_examples=12,
        stateful_step_count=12,
        derandomize=True,
        database=None,
        # Twelve steps can be read as they are; to shrink them takes hundreds of shops.
        phases=[Phase.generate],
    )
    run_state_machine_as_test(Served, settings=bounded)  # type: ignore[no-untyped-call]
