"""A Faust transport on librdkafka: chunks of records, and a ledger that alone decides what is committed."""
