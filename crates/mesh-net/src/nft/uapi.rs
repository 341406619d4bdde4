//! Numbers of `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`.

/// `NFNL_SUBSYS_NFTABLES`: the upper byte of every nf_tables message type.
pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;

/// `enum nf_tables_msg_types`.
pub(super) mod message {
    pub(crate) const NEWTABLE: u16 = 0;
    pub(crate) const GETTABLE: u16 = 1;
    pub(crate) const DELTABLE: u16 = 2;
    pub(crate) const NEWCHAIN: u16 = 3;
    pub(crate) const GETCHAIN: u16 = 4;
    pub(crate) const DELCHAIN: u16 = 5;
    pub(crate) const NEWRULE: u16 = 6;
    pub(crate) const GETRULE: u16 = 7;
    pub(crate) const DELRULE: u16 = 8;
    pub(crate) const NEWSET: u16 = 9;
    pub(crate) const GETSET: u16 = 10;
    pub(crate) const DELSET: u16 = 11;
    pub(crate) const NEWSETELEM: u16 = 12;
    pub(crate) const GETSETELEM: u16 = 13;
    pub(crate) const DELSETELEM: u16 = 14;
    pub(crate) const GETGEN: u16 = 16;
}

/// Attributes (`NFTA_*`) of tables, chains, rules, sets and elements.
pub(super) mod nfta {
    pub(crate) const LIST_ELEM: u16 = 1;

    pub(crate) const TABLE_NAME: u16 = 1;

    pub(crate) const CHAIN_TABLE: u16 = 1;
    pub(crate) const CHAIN_NAME: u16 = 3;
    pub(crate) const CHAIN_HOOK: u16 = 4;
    pub(crate) const CHAIN_POLICY: u16 = 5;
    pub(crate) const CHAIN_TYPE: u16 = 7;
    pub(crate) const CHAIN_FLAGS: u16 = 10;
    pub(crate) const HOOK_NUM: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;

    pub(crate) const RULE_TABLE: u16 = 1;
    pub(crate) const RULE_CHAIN: u16 = 2;
    pub(crate) const RULE_HANDLE: u16 = 3;
    pub(crate) const RULE_EXPRESSIONS: u16 = 4;

    pub(crate) const SET_TABLE: u16 = 1;
    pub(crate) const SET_NAME: u16 = 2;
    pub(crate) const SET_FLAGS: u16 = 3;
    pub(crate) const SET_KEY_TYPE: u16 = 4;
    pub(crate) const SET_KEY_LEN: u16 = 5;
    pub(crate) const SET_DATA_TYPE: u16 = 6;
    pub(crate) const SET_DATA_LEN: u16 = 7;
    pub(crate) const SET_DESC: u16 = 9;
    pub(crate) const SET_ID: u16 = 10;
    pub(crate) const SET_USERDATA: u16 = 13;
    pub(crate) const SET_EXPR: u16 = 17;
    pub(crate) const SET_DESC_SIZE: u16 = 1;

    pub(crate) const SET_ELEM_LIST_TABLE: u16 = 1;
    pub(crate) const SET_ELEM_LIST_SET: u16 = 2;
    pub(crate) const SET_ELEM_LIST_ELEMENTS: u16 = 3;
    pub(crate) const SET_ELEM_LIST_SET_ID: u16 = 4;
    pub(crate) const SET_ELEM_KEY: u16 = 1;
    pub(crate) const SET_ELEM_DATA: u16 = 2;
    pub(crate) const SET_ELEM_EXPR: u16 = 7;

    pub(crate) const DATA_VALUE: u16 = 1;
    pub(crate) const DATA_VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;

    pub(crate) const EXPR_NAME: u16 = 1;
    pub(crate) const EXPR_DATA: u16 = 2;

    pub(crate) const GEN_ID: u16 = 1;
}

/// `NFT_SET_*` flags.
pub(super) mod set_flag {
    pub(crate) const ANONYMOUS: u32 = 1;
    pub(crate) const CONSTANT: u32 = 2;
    pub(crate) const MAP: u32 = 8;
}

/// `NFT_REG_VERDICT`.
pub(super) const VERDICT_REGISTER: u32 = 0;
/// `NFT_REG_1`, 16 bytes: the same as the four registers from [`FIRST_WORD_REGISTER`] on.
pub(super) const FIRST_REGISTER: u32 = 1;
/// `NFT_REG_4`, 16 bytes.
pub(super) const LAST_REGISTER: u32 = 4;
/// `NFT_REG32_00`, the first register of 4 bytes.
pub(super) const FIRST_WORD_REGISTER: u32 = 8;
/// The data "type" that stands for verdicts in `NFTA_SET_DATA_TYPE`.
pub(super) const VERDICT_TYPE: u32 = 0xffff_ff00;
