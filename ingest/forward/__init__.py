"""From the spool to Kafka.

    backlog --take--> parcel (split, verdicts) --> publisher (one lane per partition) --> link (one producer at a time)
       ^------------- settle, in order, once every record and dead letter is confirmed <------'

Nothing is given up: what Kafka does not confirm is sent again, what it refuses for good becomes a dead letter, and a
dead letter that it refuses goes to quarantine.
"""
