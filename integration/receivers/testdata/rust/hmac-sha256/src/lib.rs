//! Stand-in for hmac-sha256, made of hmac and sha2.
use hmac::Mac;

pub struct HMAC;

impl HMAC {
    pub fn mac(input: &[u8], key: &[u8]) -> [u8; 32] {
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(key).expect("keys may have any length");
        mac.update(input);
        mac.finalize().into_bytes().into()
    }
}
