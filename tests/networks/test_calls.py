from hypothesis import given
from hypothesis import strategies as st

from mdl.networks.calls import in_parts


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.none() | st.integers(1, 20))
def test_parts_are_the_members_in_order_and_as_large_as_may_be(
    sizes: list[int], limit: int | None
) -> None:
    members = [str(number) for number in range(len(sizes))]
    parts = in_parts(members, sizes, limit)
    assert [member for part in parts for member in part] == members
    if limit is None:
        assert len(parts) == 1
        return
    of = [sum(sizes[int(member)] for member in part) for part in parts]
    assert all(total <= limit or len(part) == 1 for total, part in zip(of, parts, strict=True))
    nexts = [sizes[int(part[0])] for part in parts[1:]]
    assert all(total + one > limit for total, one in zip(of, nexts, strict=False))
