"""One measurement: which metrics there are, what they need, and how the network is evaluated.

A `Record` keeps the reference on one probe and everything measured since. To measure, it makes a
`Moment`, the network at one step with what several metrics need (kernel, spectrum, outputs),
each computed when it is first asked for, and asks every `Metric` of the registry for its value.
"""
