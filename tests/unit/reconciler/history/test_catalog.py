from __future__ import annotations

import pytest

from events.schema import Pod
from reconciler.history.catalog import Catalog, NotFoundError
from tests.support.stories.node import Node


def catalog(*pods: tuple[str, str, str]) -> Catalog:
    made, node = Catalog(), Node()
    for sandbox, namespace, name in pods:
        for event in node.attach(sandbox, Pod(namespace, name, "u")):
            made.add(event)
    made.add(node.start())
    return made


def test_a_full_name_stands_for_all_its_sandboxes() -> None:
    made = catalog(("aa1", "shop", "web"), ("aa2", "shop", "web"), ("b", "shop", "db"))
    assert made.resolve("shop/web") == "shop/web"
    assert made.sandboxes("shop/web") == {"aa1", "aa2"}


def test_a_bare_name_is_searched_in_default_first() -> None:
    assert catalog(("a", "shop", "web"), ("b", "default", "web")).resolve("web") == "default/web"


def test_a_unique_bare_name_is_found_in_any_namespace() -> None:
    assert catalog(("a", "shop", "web")).resolve("web") == "shop/web"


def test_a_name_in_two_namespaces_is_refused_with_both() -> None:
    with pytest.raises(NotFoundError, match="several pods are named web: lab/web, shop/web; add the namespace"):
        catalog(("a", "shop", "web"), ("b", "lab", "web")).resolve("web")


def test_a_container_id_prefix_also_finds_sandboxes_without_pod() -> None:
    made = catalog(("abc1", "shop", "web"), ("abd2", "", ""))
    assert made.sandboxes(made.resolve("abd")) == {"abd2"}
    assert made.sandboxes(made.resolve("ab")) == {"abc1", "abd2"}


@pytest.mark.parametrize("wanted", ["nope", "shop/nope", "/", "other/web"])
def test_an_unknown_name_is_refused_with_the_known_ones(wanted: str) -> None:
    with pytest.raises(NotFoundError, match=r"it knows the pods shop/db, shop/web$"):
        catalog(("aa1", "shop", "web"), ("aa2", "shop", "db")).resolve(wanted)


def test_a_long_list_is_cut() -> None:
    with pytest.raises(NotFoundError, match=r"and 5 more$"):
        catalog(*((f"a{n}", "shop", f"web-{n}") for n in range(25))).resolve("nope")


def test_an_empty_ledger_says_so() -> None:
    with pytest.raises(NotFoundError, match=r"it knows no pod$"):
        Catalog().resolve("nope")
