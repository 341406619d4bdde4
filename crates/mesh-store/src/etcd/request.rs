//! A transaction as etcd's Txn request, and what its refusal means.

use etcd_client::{
    Compare as EtcdCompare, CompareOp, DeleteOptions, GetOptions, Txn as EtcdTxn, TxnOp, TxnOpResponse,
    TxnResponse,
};

use super::fault::EtcdRefusal;
use super::keyspace::Keyspace;
use super::unsigned;
use crate::{Compare, Error, Expected, Op, Revision, Txn};

/// How many operations are sent flat. etcd's `--max-txn-ops`, 128 unless set, bounds the sum of what each level
/// of nesting has: more operations go into up to 64 inner transactions of up to 64 each, done in order and under
/// the one revision of the outer.
const LEVEL_OPS: usize = 64;

/// The request: if all compares hold, all operations; if not, reads of the compared keys, to name the one that
/// failed.
pub(super) fn build(txn: &Txn, keyspace: &Keyspace) -> Result<EtcdTxn, Error> {
    let (compares, ops) = (txn.compares().len(), txn.ops().len());
    if compares > LEVEL_OPS || ops > LEVEL_OPS * LEVEL_OPS {
        return Err(Error::InvalidTxn(format!(
            "{compares} compares and {ops} operations, more than etcd takes at once"
        )));
    }
    let found =
        |compare: &Compare| TxnOp::get(keyspace.key(&compare.key), Some(GetOptions::new().with_keys_only()));
    Ok(EtcdTxn::new()
        .when(txn.compares().iter().map(|compare| condition(compare, keyspace)).collect::<Vec<_>>())
        .and_then(operations(txn.ops(), keyspace))
        .or_else(txn.compares().iter().map(found).collect::<Vec<_>>()))
}

fn condition(compare: &Compare, keyspace: &Keyspace) -> EtcdCompare {
    // A missing key has revision 0 in etcd; no key ever has a negative one.
    let revision = match compare.expected {
        Expected::Absent => 0,
        Expected::Revision(0) => -1,
        Expected::Revision(revision) => i64::try_from(revision).unwrap_or(-1),
    };
    EtcdCompare::mod_revision(keyspace.key(&compare.key), CompareOp::Equal, revision)
}

fn operations(ops: &[Op], keyspace: &Keyspace) -> Vec<TxnOp> {
    let flat = |ops: &[Op]| ops.iter().map(|op| operation(op, keyspace)).collect::<Vec<_>>();
    match ops.len() {
        // A read makes etcd confirm that the revision it returns is the newest.
        0 => vec![TxnOp::get(keyspace.root(), Some(GetOptions::new().with_keys_only()))],
        1..=LEVEL_OPS => flat(ops),
        _ => ops.chunks(LEVEL_OPS).map(|chunk| TxnOp::txn(EtcdTxn::new().and_then(flat(chunk)))).collect(),
    }
}

fn operation(op: &Op, keyspace: &Keyspace) -> TxnOp {
    match op {
        Op::Put { key, value } => TxnOp::put(keyspace.key(key), value.clone(), None),
        Op::Delete { key } => TxnOp::delete(keyspace.key(key), None),
        Op::DeletePrefix { prefix } => {
            let range = DeleteOptions::new().with_range(keyspace.end(prefix));
            TxnOp::delete(keyspace.key(prefix), Some(range))
        }
    }
}

/// Names the first compare that does not hold, from what the refused transaction read.
pub(super) fn conflict(txn: &Txn, response: &TxnResponse) -> Error {
    let found = response.op_responses().into_iter().map(|answer| match answer {
        TxnOpResponse::Get(get) => get.kvs().first().map(|pair| unsigned(pair.mod_revision())),
        _ => None,
    });
    let failed = txn.compares().iter().zip(found).find(|(compare, found)| !holds(compare, *found));
    match failed {
        Some((compare, found)) => {
            Error::Conflict { key: compare.key.clone(), expected: compare.expected, found }
        }
        None => Error::Refused {
            endpoint: "any endpoint".to_owned(),
            why: EtcdRefusal::Other,
            reason: "the transaction was refused though all it expects is so".to_owned(),
        },
    }
}

fn holds(compare: &Compare, found: Option<Revision>) -> bool {
    match compare.expected {
        Expected::Absent => found.is_none(),
        Expected::Revision(revision) => found == Some(revision),
    }
}
