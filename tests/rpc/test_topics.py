"""Listeners to the topics of a scheduler."""

import pytest
from test_leaving import wait_until

from dbdask.rpc import topics


@pytest.fixture(params=["threads_client", "process_client"])
def client(request):
    return request.getfixturevalue(request.param)


def send_until(client, number, condition):
    """Log an event until it is heard: subscribing travels by another way than events."""

    def heard():
        client.log_event("news", number)
        return condition()

    wait_until(heard)


def test_listeners_of_a_topic_leave_each_other_alone(client):
    heard = {"first": [], "second": []}
    stops = {name: topics.listen(client, "news", words.append) for name, words in heard.items()}
    send_until(client, 1, lambda: 1 in heard["first"] and 1 in heard["second"])
    stops["first"]()
    send_until(client, 2, lambda: 2 in heard["second"])
    assert 2 not in heard["first"]
    stops["second"]()
    stop = topics.listen(client, "news", heard["first"].append)
    send_until(client, 3, lambda: 3 in heard["first"])
    assert 3 not in heard["second"]
    stop()
