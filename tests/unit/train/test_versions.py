from distsam.train.versions import versions


def test_the_versions_name_what_gives_the_data() -> None:
    assert {"python", "torch", "distsam", "numpy", "tensorly"} == set(versions())
