"""Prediction of many images: threads read them ahead, while the model predicts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from c2f_zoo.data.images import ImageLike
from c2f_zoo.data.transformed_images import UNREADABLE
from c2f_zoo.inference.prediction import Prediction
from c2f_zoo.inference.predictor import Predictor, PreparedImage

Item = TypeVar("Item")
Outcome = list[Prediction] | Exception


def predict_ahead(
    predictor: Predictor, items: Iterable[Item], images_of: Callable[[Item], Sequence[ImageLike]]
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

    def prepare(item: Item) -> list[PreparedImage]:
        return [predictor.prepare(image) for image in images_of(item)]

    pool, left = ThreadPoolExecutor(), iter(items)
    try:
        waiting = deque((item, pool.submit(prepare, item)) for item in islice(left, 2 * predictor.batch_size))
        while waiting:
            batch, count = [], 0
            while waiting and count < predictor.batch_size:
                item, future = waiting.popleft()
                images = _result_of(future)
                count += 0 if isinstance(images, Exception) else len(images)
                batch.append((item, images))
                waiting.extend((item, pool.submit(prepare, item)) for item in islice(left, 1))
            yield from _predict(predictor, batch)
    finally:
        pool.shutdown(cancel_futures=True)


def _result_of(future: Future[list[PreparedImage]]) -> list[PreparedImage] | Exception:
    try:
        return future.result()
    except UNREADABLE as error:
        return error


def _predict(
    predictor: Predictor, batch: Sequence[tuple[Item, list[PreparedImage] | Exception]]
) -> Iterator[tuple[Item, Outcome]]:
    images = [image for _, own in batch if not isinstance(own, Exception) for image in own]
    predictions = iter(predictor.predict_batch(images))
    for item, own in batch:
        yield item, own if isinstance(own, Exception) else list(islice(predictions, len(own)))
