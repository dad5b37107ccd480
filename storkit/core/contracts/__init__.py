"""The contracts: the verbs that a host may be asked for, and their types. Nothing else crosses the wire.

One class of abstract methods for each kind of target. The backends (storkit.core.backend) derive from the first three;
what a coordinator holds of another host is a proxy of the same class (storkit.core.calls); and what an agent accepts is
the methods of these classes. A public method that a backend has beside them is nobody's to call from elsewhere.

Methods run **on the host where they act**; no backend ever reaches another machine. Every verb

- takes lists, so that a fleet costs one pass;
- is idempotent: what is already so stays so, and a second call after a kill finishes the first;
- identifies volumes by UUID: a volume of the right name and the wrong UUID is a Conflict, never touched;
- checks everything that it can refuse before it changes anything, and reports all of it (errors.raise_problems).

Arguments and results are records of storkit.core.model or plain JSON values: the same call crosses ssh unchanged. Their
types are checked on both sides, as they are declared here (storkit.core.identities): a backend gets no name, UUID or
path from elsewhere that was not looked at.
"""
