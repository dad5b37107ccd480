"""The secrets of an offer, as open-iscsi is told them."""

from __future__ import annotations

from storkit.core.identities import check_secret
from storkit.core.model import Offer, Secret
from storkit.tech.iscsi.names import Chapped


def of_offer(offer: Offer) -> Chapped | None:
    """The secrets of an offer: the client's own, and with mutual CHAP the one that the target must know."""
    credential = offer.credential
    if credential is None or credential.secret is None:
        return None
    user, secret = (credential.files.get(name, Secret("")) for name in ("mutual-user", "mutual-secret"))
    for said in (user, secret):
        check_secret(said)  # they are lines of open-iscsi's record
    return Chapped(credential.user, credential.secret, user.reveal(), secret)
