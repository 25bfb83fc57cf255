// Memory for large arrays: anonymous while it fits a budget, mapped files without a name beyond it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace gpudedup {

/// Zeroed memory that is given back at the end.
class Mapping {
 public:
  Mapping() = default;
  /// Throws std::system_error when the system gives none.
  static Mapping of_memory(size_t bytes);
  /// Of a new file without a name. Space is taken first: a full disk must fail here and not by SIGBUS.
  static Mapping of_file(size_t bytes, const std::string& directory);
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping();

  void* data() const { return address_; }
  size_t bytes() const { return bytes_; }

 private:
  Mapping(void* address, size_t bytes) : address_(address), bytes_(bytes) {}
  void* address_ = nullptr;
  size_t bytes_ = 0;
};

/// Gives mappings: of memory up to `memory_bytes` in all, then of files in `directory`.
class Scratch {
 public:
  Scratch(uint64_t memory_bytes, std::string directory)
      : memory_bytes_(memory_bytes), directory_(std::move(directory)) {}

  /// Throws std::system_error when neither memory nor disk gives room.
  Mapping map(size_t bytes);

  /// Counts memory that is held outside mappings, if it fits.
  bool take(size_t bytes) {
    if (in_memory_ + bytes > memory_bytes_) return false;
    in_memory_ += bytes;
    return true;
  }

  /// Of what was taken, bytes that are not held any more.
  void give_back(size_t bytes) { in_memory_ -= bytes; }

  uint64_t bytes_in_memory() const { return in_memory_; }
  uint64_t bytes_on_disk() const { return on_disk_; }

 private:
  uint64_t memory_bytes_;
  std::string directory_;
  uint64_t in_memory_ = 0, on_disk_ = 0;
};

/// `size` values, zeros at first.
template <class Value>
class ScratchArray {
 public:
  ScratchArray() = default;
  explicit ScratchArray(size_t size) : size_(size), mapping_(Mapping::of_memory(size * sizeof(Value))) {}
  ScratchArray(Scratch& scratch, size_t size) : size_(size), mapping_(scratch.map(size * sizeof(Value))) {}

  size_t size() const { return size_; }
  Value* data() { return static_cast<Value*>(mapping_.data()); }
  const Value* data() const { return static_cast<const Value*>(mapping_.data()); }
  Value& operator[](size_t i) { return data()[i]; }
  const Value& operator[](size_t i) const { return data()[i]; }

 private:
  size_t size_ = 0;
  Mapping mapping_;
};

}  // namespace gpudedup
