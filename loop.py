"""The event loop: waits until a connection can be read or written, and has it read or write."""

import collections
import logging
import selectors

from waitress import wasyncore

log = logging.getLogger("course_api")


class Sockets(dict):
    """What the loop serves, by file number: waitress' servers and channels, and the pipes that wake it.

    The system remembers what each of them waits for; waitress' own loop asks each of them in each round. A channel is
    watched while its request is answered, too, since few clients send the next one before they have the response.
    """

    def __init__(self):
        super().__init__()
        self.selector = selectors.DefaultSelector()
        self.quick = collections.deque()  # channels whose requests this thread is to answer
        self.changed = collections.deque()  # servers and channels that may wait for something else than before

    def __setitem__(self, number, one):
        super().__setitem__(number, one)
        self.selector.register(number, selectors.EVENT_READ, one)

    def __delitem__(self, number):
        super().__delitem__(number)
        if number in self.selector.get_map():
            self.selector.unregister(number)

    def watch(self, one):
        """Tell the system what a server or a channel waits for."""
        number = one._fileno
        if number not in self:  # closed
            return
        one.is_watched = False  # until the loop has looked: a thread that changes something meanwhile wakes the loop
        one.is_watched = one.readable()
        events = selectors.EVENT_READ * bool(one.is_watched) | selectors.EVENT_WRITE * bool(one.writable())
        if number not in self.selector.get_map():
            if events:
                self.selector.register(number, events, one)
        elif events:
            self.selector.modify(number, events, one)
        else:
            self.selector.unregister(number)

    def poll(self, servers, seconds):
        """Serve what comes within this time."""
        for server in servers:
            self.watch(server)  # which also looks for idle connections, and whether there is room for more
        for key, events in self.selector.select(0 if self.changed else seconds):
            one = key.data
            if self.get(key.fd) is not one:  # closed meanwhile
                continue
            is_read = events & selectors.EVENT_READ and one.readable()
            if is_read:
                wasyncore.read(one)
            if events & selectors.EVENT_WRITE and one.writable():
                wasyncore.write(one)
            if not is_read or one.writable():  # it waits for something else from now on
                self.changed.append(one)
        while self.quick:
            try:
                self.quick.popleft().service()
            except Exception:
                log.exception("unexpected error")  # as waitress' threads do
        while self.changed:
            self.watch(self.changed.popleft())
