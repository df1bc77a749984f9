"""Listeners of a client to the topics of its scheduler."""

from collections.abc import Callable
from typing import Any

from distributed import Client

from dbdask.rpc.scheduler import is_closed


class _Listener:
    """A handler of a topic that passes each event on to the handler before it."""

    def __init__(self, handler: Callable[[Any], None], before: Any) -> None:
        self.handler, self.before = handler, before
        self.is_active = True

    def __call__(self, event: tuple[float, Any]) -> Any:
        if self.is_active:
            self.handler(event[1])
        return self.before(event) if self.before is not None else None


def listen(client: Client, topic: str, handler: Callable[[Any], None]) -> Callable[[], None]:
    """Call `handler` with every message of a topic; return a function that ends this.

    A client keeps one handler for each topic. The user's own handler, and those of other runs, go
    on to be called.
    """
    mine = _Listener(handler, _last_active(client, topic))
    client.subscribe_topic(topic, mine)

    def stop() -> None:
        mine.is_active = False
        head = _last_active(client, topic)
        if head is not None:
            client._event_handlers[topic] = head
        elif not is_closed(client):  # `mine` stays and does nothing, for a late event
            client.unsubscribe_topic(topic)

    return stop


def _last_active(client: Client, topic: str) -> Any:
    head = client._event_handlers.get(topic)
    while isinstance(head, _Listener) and not head.is_active:
        head = head.before
    return head
