# A receiver of callbacks. gem install standardwebhooks webrick; CALLBACK_KEY=whsec_… ruby receiver.rb

require "openssl"
require "securerandom"
require "standardwebhooks"
require "uri"
require "webrick"

FOLDER = "callbacks" # <id> is a callback as it came, <id>.done says that it is handled
MAX_BODY = 32 << 20 # a result of 8 MiB is up to three times as long when it is encoded
MIN_KEY = 38 # whsec_ and 24 bytes: an empty key would verify what anybody signs
TASK_ID = /\A[0-9a-f-]{36}\z/
VERBS = { "COMPLETE" => "is done", "FAILED" => "has failed", "TIMEOUT" => "took too long" }.freeze

# Where your own work goes. After a crash it can run again for the same task.
def finish(id, status, pairs)
  $stdout.write("task #{id} #{VERBS[status]}\n", *pairs.map { |name, value| "#{name}=#{value}\n" })
  $stdout.flush
end

# Whether the body is signed with our key, less than five minutes ago. Not with
# hook.verify: it wants a body that is JSON, and callbacks are forms.
def verified?(hook, body, request)
  id, at, given = %w[webhook-id webhook-timestamp webhook-signature].map { |name| request[name] }
  return false unless id && given && at&.match?(/\A\d{1,12}\z/)
  return false if (Time.now.to_i - at.to_i).abs > 300

  signed = hook.sign(id, at, body)
  given.split.any? { |one| OpenSSL.secure_compare(one, signed) }
end

# Stores a callback, on disk before it returns; whether it is the first with its ID.
def keep(id, record)
  tmp = File.join(FOLDER, ".tmp-#{SecureRandom.uuid}")
  File.open(tmp, "wbx", 0o600) { |file| file.write(record) && file.fsync }
  File.link(tmp, File.join(FOLDER, id)) # fails if it is there
  true
rescue Errno::EEXIST
  false
ensure
  File.unlink(tmp) if File.exist?(tmp)
end

# Finishes a stored task, unless that has been done.
def handle(id)
  file = File.join(FOLDER, id)
  return if File.exist?("#{file}.done")

  status, body = File.binread(file).split("\n", 2)
  finish(id, status, URI.decode_www_form(body.force_encoding("UTF-8").scrub))
  File.write("#{file}.done", "")
end

class Receiver < WEBrick::HTTPServlet::AbstractServlet
  def do_POST(request, response)
    response.status = receive(request)
  end

  private

  def receive(request)
    body = +""
    request.body do |chunk|
      body << chunk
      raise WEBrick::HTTPStatus::RequestEntityTooLarge if body.bytesize > MAX_BODY
    end
    return 401 unless verified?(@options.first, body, request)

    id, status = request["webhook-id"], request["x-beam-task-status"]
    return 400 unless id.match?(TASK_ID) && VERBS.key?(status)

    Thread.new { handle(id) } if keep(id, "#{status}\n#{body}")
    204 # a repeat too: we have it
  rescue SystemCallError => e
    warn e.message
    500 # it comes again
  end
end

key = ENV.fetch("CALLBACK_KEY", "")
abort "CALLBACK_KEY is not a whsec_ key" if key.length < MIN_KEY
hook = StandardWebhooks::Webhook.new(key)
Dir.mkdir(FOLDER, 0o700) unless Dir.exist?(FOLDER)
Dir.children(FOLDER).grep(TASK_ID).each { |id| handle(id) } # what a crash left
server = WEBrick::HTTPServer.new(BindAddress: "127.0.0.1", Port: ENV.fetch("PORT", "9000").to_i, AccessLog: [])
server.mount("/", Receiver, hook)
%w[INT TERM].each { |signal| trap(signal) { server.shutdown } }
server.start
