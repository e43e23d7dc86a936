"""The end of a message about an unknown name."""

from tapml.errors import nearest


def test_close_names_come_first_then_what_exists() -> None:
    assert nearest("vulcan", {"opencl", "vulkan"}) == "Did you mean vulkan? Known: opencl, vulkan."


def test_a_long_list_is_cut_short() -> None:
    names = [f"layers.{k}" for k in range(900)]
    text = nearest("nothing", names)
    assert text.endswith(" and 888 more.") and text.count("layers.") == 12
