//! Stand-in for base64 0.22, made of base64 0.13.
pub use old::DecodeError;

pub trait Engine {
    fn encode<T: AsRef<[u8]>>(&self, input: T) -> String;
    fn decode<T: AsRef<[u8]>>(&self, input: T) -> Result<Vec<u8>, DecodeError>;
}

pub mod engine {
    pub mod general_purpose {
        pub struct Standard;
        pub const STANDARD: Standard = Standard;

        impl crate::Engine for Standard {
            fn encode<T: AsRef<[u8]>>(&self, input: T) -> String {
                old::encode(input)
            }
            fn decode<T: AsRef<[u8]>>(&self, input: T) -> Result<Vec<u8>, crate::DecodeError> {
                old::decode(input)
            }
        }
    }
}
