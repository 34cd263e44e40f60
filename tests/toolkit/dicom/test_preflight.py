"""Counting what could begin an item: exactly as many as there are, wherever they lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.dicom import preflight
from unetx_opt.dicom.preflight import check_items
from unetx_opt.errors import ImageError

TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
#: What tags are made of, whole ones, and parts of them; in any order.
PARTS = st.lists(st.sampled_from([*TAGS, b"\xfe\xff", b"\xff\xfe", b"\x00", b"\xe0", b"\xfe", b"\xff", b"abc"]))


@given(parts=PARTS, limit=st.integers(0, 6))
def test_a_file_is_refused_exactly_if_it_has_more_tags_than_it_may(parts: list[bytes], limit: int) -> None:
    data = b"".join(parts)
    count = sum(data.count(tag) for tag in TAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "_MAX_ITEMS", limit)
        patch.setattr(preflight, "_CHUNK", 2)  # so that files of a few bytes have several
        if count > limit:
            with pytest.raises(ImageError, match="items in sequences"):
                check_items(data)
        else:
            check_items(data)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("before", [b"", b"\x01"])
def test_a_large_file_with_one_item_too_many_is_refused(tag: bytes, before: bytes) -> None:
    check_items(before + tag * 65536 + bytes(1 << 20))
    with pytest.raises(ImageError, match="more than 65536 items"):
        check_items(before + tag * 65537)
