"""The steps of a request in their order, from the policy's decision to the record of its answer.

`proxy` decides, `waiting` waits, `stored_fetches` fetches and stores, `results` turns a result into a record. This room
knows no socket, no setting and no observer.
"""
