"""Work on many images: threads read them ahead, while the model works."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from c2f_zoo.images.reading import UNREADABLE, ImageLike
from c2f_zoo.inference.image_predictor import ImagePredictor
from c2f_zoo.inference.prediction import Prediction

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")
Outcome = list[Prediction] | Exception


def predict_ahead(
    predictor: ImagePredictor, items: Iterable[Item], images_of: Callable[[Item], Sequence[ImageLike]]
) -> Iterator[tuple[Item, Outcome]]:
    """Predict the images of items, in order and in batches of `predictor.batch_size`.

    Args:
        predictor: the predictor.
        items: what to predict, such as files.
        images_of: returns the images of an item, none or more; called in threads.

    Yields:
        Each item with the predictions of its images, or with the error if an image is unreadable.

    Examples:
        >>> predictor = Predictor(create_model("mlph_tiny_critters", pretrained=True))
        >>> Image.new("RGB", (96, 96)).save("1.png")
        >>> for file, outcome in predict_ahead(predictor, ["1.png", "2.png"], lambda file: [file]):
        ...     print(file, type(outcome).__name__)
        1.png list
        2.png FileNotFoundError
    """

    yield from process_ahead(items, images_of, predictor.prepare, predictor.predict_batch, predictor.batch_size)


def process_ahead(
    items: Iterable[Item],
    images_of: Callable[[Item], Sequence[ImageLike]],
    prepare: Callable[[ImageLike], Prepared],
    process: Callable[[list[Prepared]], Iterable[Result]],
    batch_size: int,
) -> Iterator[tuple[Item, list[Result] | Exception]]:
    """Process the images of items, in order and in batches.

    Args:
        items: what to process, such as files.
        images_of: returns the images of an item, none or more; called in threads.
        prepare: reads and transforms an image; called in threads.
        process: returns the result of each prepared image.
        batch_size: the number of images of a batch; an item's images are not divided.

    Yields:
        Each item with the results of its images, or with the error if an image is unreadable.

    Examples:
        >>> numbers = process_ahead("12", lambda item: [item], int, lambda batch: [x + 1 for x in batch], batch_size=1)
        >>> list(numbers)
        [('1', [2]), ('2', [3])]
    """

    def prepare_all(item: Item) -> list[Prepared]:
        return [prepare(image) for image in images_of(item)]

    pool, left = ThreadPoolExecutor(), iter(items)
    try:
        waiting = deque((item, pool.submit(prepare_all, item)) for item in islice(left, 2 * batch_size))
        while waiting:
            batch, count = [], 0
            while waiting and count < batch_size:
                item, future = waiting.popleft()
                images = _result_of(future)
                count += 0 if isinstance(images, Exception) else len(images)
                batch.append((item, images))
                waiting.extend((item, pool.submit(prepare_all, item)) for item in islice(left, 1))
            yield from _process(process, batch)
    finally:
        pool.shutdown(cancel_futures=True)


def _result_of(future: Future[list[Prepared]]) -> list[Prepared] | Exception:
    try:
        return future.result()
    except UNREADABLE as error:
        return error


def _process(
    process: Callable[[list[Prepared]], Iterable[Result]], batch: Sequence[tuple[Item, list[Prepared] | Exception]]
) -> Iterator[tuple[Item, list[Result] | Exception]]:
    images = [image for _, own in batch if not isinstance(own, Exception) for image in own]
    results = iter(process(images) if images else [])
    for item, own in batch:
        yield item, own if isinstance(own, Exception) else list(islice(results, len(own)))
