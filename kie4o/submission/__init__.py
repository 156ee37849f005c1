"""The one call that costs credits: limit, INTENT, POST, verdict, record.

How a submit works. Each runs in a task of its own, which belongs to the client and not to the
caller: a caller that is cancelled only stops waiting. What an event does depends on how far the submit is:

| the submit                | last caller cancelled, or client closed | verdict of the attempt             |
|---------------------------|-----------------------------------------|------------------------------------|
| claims its key, waits for | called off: nothing is sent             | -                                  |
| a slot or for a resend    |                                         |                                    |
| has saved its INTENT and  | called off: the INTENT is undone        | NOT_SENT: the INTENT is undone,    |
| connects                  |                                         | sent again as `RESENDS` says       |
| was sent                  | goes on to its verdict; after `DRAIN`   | ACCEPTED: SUBMITTED is saved       |
|                           | seconds of closing it counts as UNKNOWN | REFUSED: as NOT_SENT               |
|                           |                                         | UNKNOWN: saved, never sent again   |

If the store fails before the POST, nothing is sent. If it fails afterwards, the task id is kept in memory,
logged, carried by the error, and saved again.

`verdict` and `resending` are pure tables, `rate_limit` and `permit` are the two limits, `pending` is one
submit under way, and `submissions` runs them.
"""
