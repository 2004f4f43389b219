"""What `watermark.middleware` is made of: routes, request bodies, answers, event streams, records, the self-test."""
