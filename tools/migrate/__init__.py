"""`qlog ctl migrate`: a running RabbitMQ's definitions and messages move into a running qlog.

How a queue moves (moving.py), and what is true after kill -9 of any of the three at any point:

1. Messages move in windows of at most the prefetch. A window is read through an exclusive consumer,
   which is cancelled before anything is acknowledged; nothing behind the window was ever delivered.
2. Each message goes straight into qlog's queue of that name, with the window's mark (a name that is
   made anew for each queue and counted up for each window). The mark is stored with the message.
3. qlog keeps the state of the move, as a global parameter: the window's number, where qlog's queue
   ended before it (`ends`), and its phase. `open`: nothing of the window was acknowledged.
   `acking`, set when all of it is on qlog's disk: the acknowledgement may have been sent. Then the
   next window opens. RabbitMQ takes the acknowledgement of a window as a whole.
4. Resumed in `open`, RabbitMQ redelivers the whole window. qlog is asked which messages of the mark
   it has; as many redelivered ones with that content are dropped. Nothing can be dropped wrongly,
   since all of the window is still at RabbitMQ, however alike its messages are.
5. Resumed in `acking`, the first delivery decides: if nothing behind the window had ever been
   delivered (`fresh`), a redelivered message says that the acknowledgement was not taken. Where
   that is not certain, nothing is dropped, and the window may come twice. That is so for queues
   with priorities, after a restart of RabbitMQ, and where a life ended at this very decision.
6. So what may come twice is at most one window. What is redelivered and not recognised (qlog's
   consumers may have taken its copy) is counted as such, and reported.

Streams are not emptied: they are read from the offset behind the last window that is on qlog's
disk, which stays remembered; what qlog has of the window after it is found by its mark.
"""
