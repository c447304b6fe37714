import java.net.Authenticator;
import java.net.PasswordAuthentication;
import java.net.URI;
import java.net.URLDecoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;

/** HttpClient with the one addition a caller key needs: an Authenticator that answers the proxy. */
public class Keyed {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newBuilder().authenticator(new Authenticator() {
            @Override
            protected PasswordAuthentication getPasswordAuthentication() {
                if (getRequestorType() != RequestorType.PROXY) {
                    return null;
                }
                var pair = URI.create(System.getenv("HTTPS_PROXY")).getRawUserInfo().split(":", 2);
                var key = URLDecoder.decode(pair[1].replace("+", "%2B"), StandardCharsets.UTF_8);
                return new PasswordAuthentication(pair[0], key.toCharArray());
            }
        }).build();
        var request = HttpRequest.newBuilder(URI.create("https://api.example.com/v1"))
            .POST(HttpRequest.BodyPublishers.ofString("{\"question\":\"java\"}"))
            .build();
        var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}
