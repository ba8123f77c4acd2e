from distsam.runs.rows import Row
from distsam.train.row_book import RowBook


def test_rows_come_out_whole_and_in_the_order_of_steps() -> None:
    written: list[Row] = []
    book = RowBook(written.append)
    book.open(0, {"a": 1}, waits=False)
    book.open(10, {"a": 2}, waits=True)
    book.open(15, {"a": 3}, waits=False)
    assert [row["train/step"] for row in written] == [0]
    book.close(10, {"b": 4})
    assert written == [{"train/step": 0, "a": 1}, {"train/step": 10, "a": 2, "b": 4}, {"train/step": 15, "a": 3}]


def test_a_row_that_was_not_opened_can_be_closed() -> None:
    written: list[Row] = []
    RowBook(written.append).close(7, {"b": 1})
    assert written == [{"train/step": 7, "b": 1}]
